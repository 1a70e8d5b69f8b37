/**
 * A supernode is a well-known address where a ring can be joined, and nothing more: it may die, and the ring goes on.
 */

include "compute_node.thrift"

namespace py tutti_ring.supernode

service Supernode {
  /**
   * Enrol a process that wants to join; the answer is members through which it can. It is empty if this process shall
   * begin the ring. While no member answers, that is whoever came first; the others get its address, and ask again.
   * Refused if the address is not on the supernode's list of members, or another live process has it.
   */
  list<compute_node.Peer> enrol(1: i32 protocol, 2: compute_node.Peer peer) throws (1: compute_node.Refused refused)

  /** Members that are believed alive, for clients. */
  list<compute_node.Peer> members(1: i32 protocol) throws (1: compute_node.Refused refused)
}
