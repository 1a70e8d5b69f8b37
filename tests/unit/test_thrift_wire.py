"""Thrift's binary protocol from strangers: what is right is read, what is wrong costs nothing and says why."""

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tutti.adapters.thrift.idl import (
    BadValue,
    compute_node,
    is_address,
    key_from,
    peer_from,
    peer_struct,
    view_from,
    view_struct,
)
from tutti.ring.identifiers import Peer
from tutti.ring.member import View
from tutti.ring.roster import EMPTY, Claim
from tutti.wire.thrift import LARGE, LENGTH, BadFrame, Kind, decode, encode

PEER = compute_node.Peer(b"i" * 20, "host:1", 7)
CALL = b"".join(encode("tell", Kind.CALL, 5, compute_node.ComputeNode.tell_args(1, PEER)))[LENGTH:]
HEAD = CALL[:16]

ids, lives = st.integers(0, 2**160 - 1), st.integers(0, 2**30)
peers = st.builds(
    Peer, ids, st.builds("{}:{}".format, st.text("abcü", min_size=1, max_size=20), st.integers(1, 65535)), lives
)
fillers = st.builds(Peer, ids, st.just(""), lives)
NO_ADDRESSES = (
    "",
    "a",
    ":80",
    "a:",
    "a:0",
    "a:65536",
    "a b:80",
    "a\tb:80",
    "a..b:80",
    ".a:80",
    f"{'x' * 64}:80",
    "a\0:80",
)


def test_a_call_has_the_bytes_of_the_specification():
    assert (
        CALL.hex()
        == (
            "80010001"
            "00000004"
            "74656c6c"
            "00000005"  # strict version 1, call, "tell", sequence number
            "08"
            "0001"
            "00000001"  # i32 protocol
            "0c"
            "0002"  # struct Peer
            "0b"
            "0001"
            "00000014" + b"i".hex() * 20 + "0b"
            "0002"
            "00000006" + b"host:1".hex() + "0a"
            "0003"
            "0000000000000007"
            "00"
            "00"
        )
    )
    message = decode(CALL)
    assert (message.name, message.kind, message.seqid) == ("tell", Kind.CALL, 5)
    arguments = message.struct(compute_node.ComputeNode.tell_args)
    assert (arguments.protocol, arguments.peer.id, arguments.peer.incarnation) == (1, b"i" * 20, 7)


@given(peers, st.lists(peers | fillers, max_size=5), st.lists(peers, max_size=5))
def test_views_go_there_and_back(peer, successors, others):
    roster = EMPTY.heard(*others[1:]).lost(others[0]) if others else EMPTY
    view = View(peer, None, tuple(successors), tuple(others), roster)
    frame = b"".join(encode("ask", Kind.REPLY, 1, view_struct(view)))
    assert int.from_bytes(frame[:LENGTH]) == len(frame) - LENGTH
    for message in (frame[LENGTH:], memoryview(frame)[LENGTH:]):
        assert view_from(decode(message).struct(compute_node.View)) == view


@pytest.mark.parametrize("size", [0, LARGE - 1, LARGE, 3 * LARGE])
def test_large_values_are_sent_and_read_where_they_lie(size):
    data = memoryview(bytes(size))
    pieces = encode("store", Kind.CALL, 1, compute_node.ComputeNode.store_args(b"d" * 32, size, 0, data))
    assert any(piece is data for piece in pieces) == (size >= LARGE)
    frame = memoryview(b"".join(pieces))
    assert int.from_bytes(frame[:LENGTH]) == len(frame) - LENGTH
    arguments = decode(frame[LENGTH:]).struct(compute_node.ComputeNode.store_args)
    assert (arguments.digest, arguments.size, arguments.data) == (b"d" * 32, size, data)


@given(st.binary(max_size=200))
def test_garbage_is_refused_and_nothing_else(noise):
    with pytest.raises(BadFrame):
        decode(noise).struct(compute_node.View)


@given(st.integers(0, len(CALL) - 1), st.binary(min_size=1, max_size=4))
def test_damage_is_refused_or_read_as_something_else(at, noise):
    with suppress(BadFrame):
        decode(CALL[:at] + noise + CALL[at + len(noise) :]).struct(compute_node.ComputeNode.tell_args)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("", "in the middle of a number"),
        ("63", "there is no type 99"),
        ("0b0001ffffffff", "a string claims -1 bytes"),
        ("0b00097fffffff", "a string claims 2147483647 bytes"),
        ("0f00090b7fffffff", "a container claims 2147483647 elements"),
        ("0f00090000000001", "a container claims 1 elements"),
        ("0d000900007fffffff", "a container claims 2147483647 elements"),
        ("0c0009" * 40, "nested deeper than 16"),
        ("0b0001000000014100", "lacks its field"),
        ("0000", "1 bytes follow the end"),
    ],
)
def test_what_a_stranger_may_not_do(body, reason):
    with pytest.raises(BadFrame, match=reason):
        decode(HEAD + bytes.fromhex(body)).struct(
            compute_node.Peer if "lacks" in reason else compute_node.ComputeNode.missing_args
        )


def test_fields_that_are_not_known_are_passed_over():
    map_of_structs = "0d00090b0c0000000100000001410200010100"
    newer = map_of_structs + "02000801" + "0f000706000000010009"
    arguments = decode(HEAD + bytes.fromhex(newer + "00")).struct(compute_node.ComputeNode.missing_args)
    assert arguments.digests is None


def test_another_protocol_is_told_from_this_one():
    with pytest.raises(BadFrame, match="strict binary protocol"):
        decode(b"GET / HTTP/1.1\r\n")


def test_values_that_cannot_be_are_refused():
    with pytest.raises(BadValue, match="should have 20 bytes, came 3"):
        key_from(b"abc")
    with pytest.raises(BadValue, match="not a peer"):
        peer_from(compute_node.Peer(b"i" * 20, "x" * 300, 0))
    with pytest.raises(BadValue, match="not a peer"):
        peer_from(compute_node.Peer(b"i" * 20, "x", -1))
    with pytest.raises(BadValue, match="not a peer"):
        peer_from(compute_node.Peer(b"i" * 20, "x", 2**63 - 1))
    with pytest.raises(ValueError, match="is not set"):
        encode("ask", Kind.REPLY, 0, compute_node.Peer())
    assert peer_from(peer_struct(Peer(3, "a:1", 2))) == Peer(3, "a:1", 2)


def test_what_others_have_heard_of_lives_that_cannot_be_is_left_out():
    """A member that is called dead in one of them takes the next, which nobody could write, let alone outlive."""
    forged, real = Peer(3, "a:1", 2**63 - 1), Peer(4, "b:1", 2)
    said = View(Peer(5, "c:1", 1), forged, (forged, real), (forged,), EMPTY.merged([Claim(forged, False)]))
    assert view_from(view_struct(said)) == View(Peer(5, "c:1", 1), None, (real,))


@pytest.mark.parametrize("address", NO_ADDRESSES)
def test_addresses_that_none_can_have_are_left_out_of_what_others_have_heard(address):
    """Some of them end the process that looks them up, were they believed."""
    assert not is_address(address)
    nobody, real, me = Peer(3, address, 2), Peer(4, "b:1", 2), Peer(5, "c:1", 1)
    said = View(me, nobody, (nobody, real), (nobody, real), EMPTY.heard(nobody, real))
    after = (nobody, real) if not address else (real,)  # which fills a list up
    assert view_from(view_struct(said)) == View(me, None, after, (real,), EMPTY.heard(real))
    with pytest.raises(BadValue, match="not a member"):
        view_from(view_struct(View(nobody, None, ())))


@pytest.mark.parametrize("address", ["127.0.0.1:1", "[fe80::1%eth0]:65535", "a.example.org.:80", "bücher.example:80"])
def test_addresses_are_a_host_that_can_be_looked_up_and_a_port(address):
    assert is_address(address)
