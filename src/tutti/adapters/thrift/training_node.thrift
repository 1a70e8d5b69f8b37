/**
 * What members of a ring say to one another while they train, and what clients ask of them. A member serves these calls
 * at the same address as those of compute_node.thrift. docs/ring.md explains them.
 */

include "compute_node.thrift"

namespace py tutti_ring.training_node

/** Where a job stands, and its newest model. */
struct Progress {
  /** JSON: the JobView of docs/openapi.json. */
  1: required binary job
  /** JSON: a list of RoundViews. */
  2: required binary rounds
}

/** A data set that a client has divided among the members; of two, the one that was placed later counts. */
struct Placement {
  1: required string name
  /** BLAKE3 of the digests of all parts, in hex: what is placed once more is the same placement. */
  2: required string content
  /** Microseconds since 1970, by the client's clock. */
  3: required i64 at
}

/** What the owner of parts says about them. */
struct Kept {
  /** Those that it and all who have its copies hold. */
  1: required list<binary> safe
  /** Itself, and those. */
  2: required list<compute_node.Peer> holders
}

/** It cannot be done at the moment: another member leads, or the session is over. Connect anew, or ask again. */
exception NotNow { 1: required string reason }

service TrainingNode extends compute_node.ComputeNode {
  /** A message of agreement: MessagePack of one of the messages of tutti.ring.consensus. It may be lost. */
  void agree(1: i32 protocol, 2: compute_node.Peer sender, 3: binary message) throws (1: compute_node.Refused refused)

  /**
   * A member connects to the leader: the frame is a `device:register` of docs/protocol.md. `session` names the connection
   * from now on: the lower 24 bits count those of one process, the bits above are random and the same for all of them.
   * The newest session of a node replaces the one before.
   */
  void attach(1: i32 protocol, 2: compute_node.Peer sender, 3: i64 session, 4: binary registration)
    throws (1: compute_node.Refused refused, 2: NotNow later)

  /** From the member to the leader: a message of docs/protocol.md. */
  void say(1: i64 session, 2: binary message) throws (1: compute_node.Refused refused, 2: NotNow later)

  /** From the member to the leader: it does not listen any more. It may be lost. */
  void leave(1: i64 session)

  /** From the leader to the member, on its own port. */
  void hear(1: compute_node.Peer leader, 2: i64 session, 3: binary message)
    throws (1: compute_node.Refused refused, 2: NotNow later)

  /** From the leader to the member: the session has ended. `replaced`: by another process. It may be lost. */
  void over(1: compute_node.Peer leader, 2: i64 session, 3: string reason, 4: bool replaced)
    throws (1: compute_node.Refused refused)

  /**
   * Keep these parts of a data set, as their owner or as one that has copies; the answer is which of them are not
   * stored here yet. What was placed before is given up. Refused if something was placed later.
   */
  list<binary> keep(1: i32 protocol, 2: Placement placement, 3: list<binary> digests)
    throws (1: compute_node.Refused refused)

  /** Which of these parts this member owns and has copied. */
  Kept kept(1: i32 protocol, 2: Placement placement, 3: list<binary> digests) throws (1: compute_node.Refused refused)

  /** Submit a job (JSON: the JobSpec of docs/openapi.json). The same key again gives the same job, whoever is asked. */
  string submit(1: i32 protocol, 2: string key, 3: binary job)
    throws (1: compute_node.Refused refused, 2: NotNow later)

  /** Where a job stands, as far as this member knows. */
  Progress progress(1: i32 protocol, 2: string job)
    throws (1: compute_node.NotFound absent, 2: compute_node.Refused refused)

  /** This member, as JSON: its place in the ring, what it has agreed to, and whether all is well. */
  binary show(1: i32 protocol) throws (1: compute_node.Refused refused)

  /** Go on without a majority, with the members that are here. Only a person can know that the others are gone. */
  void reform(1: i32 protocol) throws (1: compute_node.Refused refused)
}
