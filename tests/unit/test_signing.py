"""What nodes sign of their updates: hashes by hand, numbers that are used once, and signatures that are none."""

import random

import pytest

from tutti.adapters.identities.secp256k1 import ORDER, Secp256k1Key, verify
from tutti.core import keccak
from tutti.core.errors import Conflict
from tutti.core.registry import Choice
from tutti.domain.contributions import BadProof, Contribution, check_heard, check_signature, check_signers, record_of
from tutti.domain.events import NodeJoined
from tutti.domain.nodes import Invite, Pin, Register, Remove, decide, evolve
from tutti.domain.signing import Domain, Signed, address_of, digest_of
from tutti.domain.spec import DataSchema, Training
from tutti.services.signing import UpdateSigner
from tutti.wire.messages import Start

KEY = Secp256k1Key(b"k" * 32)
UPDATE, OTHER, MODEL = "ab" * 32, "cd" * 32, "ef" * 32


def start(round: int = 1, weights: str = MODEL, job: str = "digits-1") -> Start:
    return Start(
        job=job,
        name="digits",
        round=round,
        attempt=0,
        rounds=3,
        task="train",
        model=Choice("linear"),
        data=DataSchema("regression", (1,), 1),
        weights=weights,
        seed=0,
        cohort=1,
        training=Training(),
        domain=Domain(31337, "0x" + "12" * 20),
    )


def test_keccak_by_its_published_values_and_both_ways_alike():
    for hash256 in (keccak.reference, keccak.keccak256):
        assert hash256(b"").hex() == "c5d2460186f7233c927e7db2dcc703c0e500b653ca82273b7bfad8045d85a470"
        assert hash256(b"abc").hex() == "4e03657aea45a94fc7d47ba826c8d667c0d1e6e33a64a036ec44f58fa12d6c45"
    rng = random.Random(0)
    for length in (1, 31, 135, 136, 137, 271, 272, 273, 1000):
        data = rng.randbytes(length)
        assert keccak.keccak256(data) == keccak.reference(data), length


def test_an_address_is_that_of_the_key():
    one = Secp256k1Key((0).to_bytes(32, "big"))  # the private key 1, whose address everybody knows
    assert address_of(one.public) == "0x7e5f4552091a69125d5dfcb7b8c2659029395bdf"
    assert address_of("") == ""


def test_signatures_hold_for_what_was_signed_and_nothing_else():
    digest = b"\x11" * 32
    signature = KEY.sign(digest)
    r, s = signature[:32], int.from_bytes(signature[32:], "big")
    assert verify(KEY.public, digest, signature)
    assert s <= ORDER // 2
    assert not verify(KEY.public, b"\x12" * 32, signature)
    assert not verify(Secp256k1Key(b"x" * 32).public, digest, signature)
    assert not verify(KEY.public, digest, r + (ORDER - s).to_bytes(32, "big"))  # what a forger makes of it
    for public, given in (
        ("", signature),
        ("zz" * 64, signature),
        ("11" * 64, signature),
        (KEY.public, b""),
        (KEY.public, bytes(64)),
    ):
        assert not verify(public, digest, given)


def test_a_node_signs_each_update_of_a_round_under_a_number_of_its_own(tmp_path):
    signer = UpdateSigner(KEY, tmp_path / "signed")
    first = signer.sign(start(), UPDATE, 10)
    assert verify(KEY.public, digest_of("digits-1", UPDATE, first), bytes.fromhex(first.signature))
    assert first.nonce == 0
    again = UpdateSigner(KEY, tmp_path / "signed")  # started anew
    assert again.sign(start(), UPDATE, 10).nonce == 0
    assert again.sign(start(), OTHER, 10).nonce == 1
    assert again.sign(start(weights=OTHER), UPDATE, 10).nonce == 2  # asked for the same round with another model
    assert again.sign(start(), UPDATE, 11).nonce == 3
    assert again.sign(start(round=2), OTHER, 10).nonce == 0
    assert again.sign(start(job="digits-2"), OTHER, 10).nonce == 0


def test_what_a_loss_of_power_left_of_a_line_does_no_harm(tmp_path):
    UpdateSigner(KEY, tmp_path).sign(start(), UPDATE, 10)
    with (tmp_path / "digits-1").open("a") as file:
        file.write("1 3f")
    signer = UpdateSigner(KEY, tmp_path)
    numbers = [signer.sign(start(), update, 10).nonce for update in (OTHER, UPDATE, OTHER, "11" * 32)]
    assert numbers[1] == 0
    assert len({numbers[0], numbers[1], numbers[3]}) == 3
    assert numbers[2] == numbers[0]


def contribution(signed: Signed | None) -> Contribution:
    return Contribution(job="digits-1", round=1, node="a", digest=UPDATE, weight=10, signed=signed)


def test_a_record_says_who_has_signed_it_and_one_that_was_changed_is_found(tmp_path):
    signed = UpdateSigner(KEY, tmp_path).sign(start(), UPDATE, 10)
    assert check_signature(contribution(signed), verify) == KEY.public
    assert check_signature(contribution(None), verify) == ""
    assert b"signed" not in record_of(contribution(None))  # as it was before there were signatures
    for field, value in (
        ("samples", 11),
        ("nonce", 1),
        ("round", 2),
        ("base", OTHER),
        ("domain", Domain()),
        ("key", "11" * 64),
    ):
        changed = Signed(**{name: getattr(signed, name) for name in signed.__struct_fields__} | {field: value})
        with pytest.raises(BadProof, match="not signed by the key"):
            check_signature(contribution(changed), verify)


def test_a_node_has_one_key_and_it_is_the_one_that_is_known(tmp_path):
    one = contribution(UpdateSigner(KEY, tmp_path / "a").sign(start(), UPDATE, 10))
    other = contribution(UpdateSigner(Secp256k1Key(b"x" * 32), tmp_path / "b").sign(start(), UPDATE, 10))
    address = address_of(KEY.public)
    assert check_signers([one, one], verify, {"a": address}) == {"a": (2, address)}
    assert check_signers([contribution(None)], verify, {}) == {"a": (1, "")}
    for wrong, known in (([one, other], {}), ([one], {"a": "0x" + "00" * 20}), ([contribution(None)], {"a": address})):
        with pytest.raises(BadProof, match="a signs as"):
            check_signers(wrong, verify, known)


def test_a_node_whose_key_is_known_must_have_updates():
    check_heard([], [])
    check_heard(["a"], ["b", "a"])
    with pytest.raises(BadProof, match=r"no update of nobody is among those that were checked, which are of a, b$"):
        check_heard(["a", "nobody"], ["b", "a"])


def test_the_first_key_of_a_node_is_its_key_until_it_is_removed():
    state = Register(nodes={"a": "secret"}, invites={"i": Invite(uses=1, expires=9)})
    (keyed,) = decide(state, Pin(node="a", key="k1"), now=1)
    state = evolve(state, keyed)
    assert decide(state, Pin(node="a", key="k1"), now=2) == []
    assert decide(state, Pin(node="stranger", key="k1"), now=2) == []
    for other in ("k2", ""):
        with pytest.raises(Conflict, match="another key before"):
            decide(state, Pin(node="a", key=other), now=2)
    with pytest.raises(Conflict, match="not with a copy"):  # two would sign under the same numbers
        decide(evolve(state, NodeJoined(at=2, node="b", invite="i", secret="s")), Pin(node="b", key="k1"), now=2)
    (removed,) = decide(state, Remove(node="a"), now=3)
    assert evolve(state, removed).keys == {}
