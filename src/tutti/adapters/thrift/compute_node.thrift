/**
 * What members of a ring say to one another, in Apache Thrift's strict binary protocol over framed transport.
 * Any Thrift client may call it. docs/ring.md explains the calls; numbers once given are never given to anything else.
 */

namespace py tutti_ring.compute_node

/**
 * Sent with every call with which something begins (joining, a session, a client's question); a member refuses callers
 * of another version. It is raised whenever a change of these files would be misunderstood.
 */
const i32 PROTOCOL = 2

/** The largest `data` of one call, in bytes. A frame has at most 2 MiB. */
const i32 CHUNK = 1048576

/** A process on the circle. `id` is 20 bytes, big-endian: the first 160 bits of SHA-256 of `address` (host:port). */
struct Peer {
  1: required binary id
  2: required string address
  3: required i64 incarnation
}

/** What is believed of a peer. */
struct Claim {
  1: required Peer peer
  2: required bool alive
}

/** What a member answers to every question. */
struct View {
  1: required Peer peer
  2: optional Peer predecessor
  3: required list<Peer> successors
  4: required list<Peer> nearer
  5: required list<Claim> roster
  /**
   * The ring of this member: SHA-256 of the first record of its chain, 32 bytes. Left out while it has none, or one
   * that nobody has used. Members of two such rings take one another for dead.
   */
  6: optional binary chain
}

/** A part of a blob that has `size` bytes in all. */
struct Part {
  1: required i64 size
  2: required binary data
}

/** The process is there, but not (or no longer) part of a ring: whoever asks takes it for dead. */
exception NotMember { 1: required string reason }

/** The call cannot be carried out, and trying again will not help. */
exception Refused { 1: required string reason }

/** There is no such blob here. */
exception NotFound { 1: required string reason }

service ComputeNode {
  /** The member's view towards `key` (20 bytes). `asker` is the calling member; clients that are none leave it out. */
  View ask(1: i32 protocol, 2: binary key, 3: Peer asker) throws (1: NotMember absent, 2: Refused refused)

  /** `peer`, the caller, exists. */
  void tell(1: i32 protocol, 2: Peer peer) throws (1: Refused refused)

  /** Which of these blobs are not here. Digests are BLAKE3, 32 bytes. */
  list<binary> missing(1: list<binary> digests) throws (1: Refused refused)

  /** The bytes of a blob from `offset` on, at most CHUNK of them. */
  Part fetch(1: binary digest, 2: i64 offset) throws (1: NotFound absent, 2: Refused refused)

  /**
   * The next bytes of a blob of `size` bytes, in order; whoever sends next continues an upload that was cut off.
   * The last ones are answered when the blob is stored and right.
   */
  void store(1: binary digest, 2: i64 size, 3: i64 offset, 4: binary data) throws (1: Refused refused)
}
