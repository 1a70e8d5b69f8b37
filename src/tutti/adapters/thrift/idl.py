"""The IDL files, loaded; and the ring's values from and to its structs."""

import time
from pathlib import Path
from typing import Any

import thriftpy2

from tutti.core.errors import UserError
from tutti.ring.identifiers import BITS, Peer
from tutti.ring.member import View
from tutti.ring.roster import EMPTY, ROOM, Claim

_HERE = Path(__file__).parent
supernode: Any = thriftpy2.load(str(_HERE / "supernode.thrift"), "tutti_supernode_thrift")
compute_node: Any = supernode.compute_node
training_node: Any = thriftpy2.load(str(_HERE / "training_node.thrift"), "tutti_training_node_thrift")

PROTOCOL: int = compute_node.PROTOCOL
CHUNK: int = compute_node.CHUNK
KEY_BYTES = BITS // 8
MAX_ADDRESS = 261  # a host name has at most 255 bytes
MAX_LIST = 64
DIGEST = 32
"""Bytes of a digest."""

AHEAD = 86_400
"""Lives are counted from the clock, in seconds. One so far ahead of the clock here is not believed: who is called dead
in its latest possible life could not come back."""


class BadValue(UserError):
    """A well-formed message says something that cannot be."""


def key_bytes(key: int) -> bytes:
    return key.to_bytes(KEY_BYTES)


def key_from(data: bytes | None) -> int:
    if data is None or len(data) != KEY_BYTES:
        raise BadValue(f"an identifier should have {KEY_BYTES} bytes, came {len(data or b'')}")
    return int.from_bytes(data)


def peer_struct(peer: Peer) -> Any:
    return compute_node.Peer(key_bytes(peer.id), peer.address, peer.incarnation)


def peer_from(struct: Any) -> Peer:
    """Raises BadValue for an address or incarnation that none can have."""
    if len(struct.address) > MAX_ADDRESS or struct.incarnation < 0 or not _has_begun(struct):
        raise BadValue(f"not a peer: address {struct.address[:80]!r}, incarnation {struct.incarnation}")
    return Peer(key_from(struct.id), struct.address, struct.incarnation)


def _has_begun(struct: Any) -> bool:
    return bool(struct.incarnation <= time.time() + AHEAD)


def is_address(text: str) -> bool:
    """Whether it is a host that a resolver takes, and a port."""
    host, _, port = text.rpartition(":")
    if not host.isprintable() or " " in host or not port.isdecimal() or not 0 < int(port) < 65536:
        return False
    try:
        return bool(host.encode("idna"))
    except UnicodeError:  # a label is empty, or longer than 63 letters
        return False


def _can_be(struct: Any) -> bool:
    return is_address(struct.address) and _has_begun(struct)


def _can_follow(struct: Any) -> bool:
    """Also an entry without an address, which only fills a successor list up."""
    return _has_begun(struct) and (not struct.address or is_address(struct.address))


def view_struct(view: View) -> Any:
    return compute_node.View(
        peer_struct(view.peer),
        None if view.predecessor is None else peer_struct(view.predecessor),
        [peer_struct(peer) for peer in view.successors],
        [peer_struct(peer) for peer in view.nearer],
        [compute_node.Claim(peer_struct(claim.peer), claim.alive) for claim in view.roster.claims.values()],
        bytes.fromhex(view.chain) or None,
    )


def view_from(struct: Any) -> View:
    """Raises BadValue; lists are cut to what a member may say, and addresses and lives that cannot be are left out."""
    before = struct.predecessor
    if not is_address(struct.peer.address):
        raise BadValue(f"not a member: address {struct.peer.address[:80]!r}")
    return View(
        peer_from(struct.peer),
        peer_from(before) if before is not None and _can_be(before) else None,
        tuple(map(peer_from, filter(_can_follow, struct.successors[:MAX_LIST]))),
        tuple(map(peer_from, filter(_can_be, struct.nearer[:MAX_LIST]))),
        EMPTY.merged(
            Claim(peer_from(claim.peer), claim.alive) for claim in struct.roster[: 2 * ROOM] if _can_be(claim.peer)
        ),
        (struct.chain or b"")[:DIGEST].hex(),
    )
