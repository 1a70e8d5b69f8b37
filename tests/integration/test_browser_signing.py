"""What browsers sign, in JavaScript's own engine: the same bytes as a Python node's, and signatures that hold here."""

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from support.scripts import ask, bundled
from tutti.adapters.identities.secp256k1 import ORDER, Secp256k1Key, verify
from tutti.core.registry import Choice
from tutti.domain.signing import NOWHERE, Domain, Signed, address_of, digest_of
from tutti.domain.spec import DataSchema, Training
from tutti.services.proofs import CONNECTING, Proofs
from tutti.services.signing import UpdateSigner
from tutti.wire.messages import Start, encode

pytestmark = pytest.mark.xdist_group("node")

SECRETS = [bytes(32), b"k" * 32, bytes([255] * 32), (ORDER - 1).to_bytes(32, "big"), bytes(range(32))]
UPDATE, MODEL, MOST = "ab" * 32, "ef" * 32, 2**63 - 1
CONTRACT = "0x" + "1aB2" * 10


@pytest.fixture(scope="module")
def script(tmp_path_factory) -> Path:
    return bundled(tmp_path_factory.mktemp("script"))


def start(job: str = "digits-1", round: int = 1, weights: str = MODEL, domain: Domain = Domain()) -> Start:  # noqa: B008 - frozen
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
        seed=2**63 - 1,
        cohort=1,
        training=Training(),
        domain=domain,
    )


def member(secret: bytes) -> dict[str, str]:
    return {"node": "ada", "key": secret.hex()}


def case(secret: bytes, start: Start, samples: int = 10, nonce: int = 0, digest: str = UPDATE) -> dict[str, Any]:
    claim = {"digest": digest, "samples": samples}
    return {
        "what": "sign",
        "member": member(secret),
        "start": str(encode(start), "utf-8"),
        "claim": claim,
        "nonce": nonce,
    }


VECTORS = {
    "where there is no chain": (start(), 10, 0),
    "on a chain": (start(domain=Domain(31337, CONTRACT)), 10, 0),
    "on a chain with a long number": (start(domain=Domain(MOST, CONTRACT)), 10, 0),
    "without a contract": (start(domain=Domain(1, NOWHERE)), 0, 1),
    "a job with signs in its name": (start("größte-übung-7", 2**31, "00" * 32), 2**53, 2**31),
}


@pytest.mark.parametrize("what", VECTORS)
def test_browsers_sign_the_bytes_that_python_nodes_sign(script, what, tmp_path):
    its, samples, nonce = VECTORS[what]
    said = ask(script, *(case(secret, its, samples, nonce) for secret in SECRETS))
    for secret, each in zip(SECRETS, said, strict=True):
        answer, key = each["answer"], Secp256k1Key(secret)
        bare = Signed(
            key=key.public,
            round=its.round,
            base=its.weights,
            samples=samples,
            nonce=nonce,
            signature="",
            domain=its.domain,
        )
        digest = digest_of(its.job, UPDATE, bare)
        assert answer["digest"] == digest.hex()
        assert answer["claim"] == digest_of(its.job, UPDATE, replace(bare, nonce=0)).hex()
        assert verify(key.public, digest, bytes.fromhex(answer["signature"]))
    signer = UpdateSigner(Secp256k1Key(SECRETS[0]), tmp_path)
    assert signer.sign(its, UPDATE, samples).nonce == 0
    (line,) = (tmp_path / its.job).read_text().splitlines()
    assert line == f"{its.round} {said[0]['answer']['claim']}"  # what it keeps, too


def test_it_is_what_wallets_sign(script):
    """By eth_account 0.13 (`encode_typed_data`, `sign_message`): its signatures are those of RFC 6979, too."""
    (said,) = ask(script, case(SECRETS[1], start(domain=Domain(31337, CONTRACT)), 12, 3))
    assert said["answer"]["digest"] == "eacb363455cb54267e3483cc200da32f3fe1b8635d7732325be35ba6fccb37e6"
    assert said["answer"]["signature"] == (
        "03c09ce24c284e3b170cefd2df9ddb4bec0e7d568ad158558208e3b79717d6ef"
        "6b66ef0b58ae78ae3570a5da995064548ed7ce6c5a83dcc64fd7cf13794c7df0"
    )


def test_a_key_is_the_same_in_both(script):
    said = ask(script, *({"what": "key", "member": member(secret)} for secret in SECRETS))
    for secret, each in zip(SECRETS, said, strict=True):
        public = Secp256k1Key(secret).public
        assert each["answer"] == {"public": public, "address": address_of(public), "identity": f"secp256k1:{public}"}


def test_a_proof_of_who_it_is_holds_for_one_use_of_one_start_of_the_coordinator(script):
    proofs = Proofs(verify, lambda: 1_800_000_000.5)
    asked = {"challenge": proofs.challenge, "now": proofs.now}
    said = ask(
        script,
        *({"what": "proof", "member": member(secret), "challenge": asked, "use": CONNECTING} for secret in SECRETS),
    )
    for place, (secret, each) in enumerate(zip(SECRETS, said, strict=True)):
        assert proofs.stands_for(each["answer"]) == f"secp256k1:{Secp256k1Key(secret).public}"
        (proofs if place == 0 else Fresh(proofs)).check("ada", each["answer"], CONNECTING)


class Fresh(Proofs):
    """Of the same start, and shown nothing yet."""

    def __init__(self, like: Proofs) -> None:
        super().__init__(verify, lambda: 1_800_000_000.5)
        self.challenge = like.challenge


def test_what_a_start_says_of_large_numbers_is_not_rounded(script):
    whole = start(domain=Domain(MOST, CONTRACT))
    rounded = start(domain=Domain(int(float(MOST)) - 1024, CONTRACT))
    one, other = ask(script, case(SECRETS[1], whole), case(SECRETS[1], rounded))
    assert one["answer"]["digest"] != other["answer"]["digest"]
    assert json.loads(encode(whole))["seed"] == MOST
    assert msgspec.json.decode(encode(whole))["domain"]["chain"] == MOST


# -- what a coordinator may not have signed twice under one number --------------------------------------------

ME, NEW = member(SECRETS[1]), member(SECRETS[2])


def signed(its: str, digest: str = UPDATE, by: dict[str, str] = ME) -> dict[str, Any]:
    return {"what": "signed", "member": by, "start": its, "claim": {"digest": digest, "samples": 10}}


def said(**fields: object) -> str:
    """A start as a hostile coordinator may write it."""
    return json.dumps({**json.loads(encode(start())), **fields})


HOSTILE = {
    "a round as text": said(round="1"),
    "with a zero before": said(round="01"),
    "in hexadecimal": said(round="0x1"),
    "with a space": said(round=" 1"),
    "nothing": said(round=""),
    "no round": said(round=None),
    "yes": said(round=True),
    "a list": said(round=[1]),
    "a part": said(round=1.5),
    "below zero": said(round=-1),
    "rounded": said(round=2**53),
    "half a character": said(job="digits-\ud800"),
    "the other half": said(job="digits-\udfff"),
    "a list of a job": said(job=["digits-1"]),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_what_would_be_signed_as_another_place_is_refused(script, what):
    remembered, answer, bare = ask(
        script,
        {"what": "remember", "member": ME},
        signed(HOSTILE[what]),
        {"what": "sign", "member": ME, "start": HOSTILE[what], "claim": {"digest": UPDATE, "samples": 1}, "nonce": 0},
    )
    assert "error" not in remembered
    for refused in (answer, bare):
        assert refused["error"].startswith("not signed: expected a ")


def test_one_round_in_another_spelling_is_the_same_round(script):
    spellings = [said(), said(round=1.0), said(round=1).replace('"round": 1,', '"round": 1e0,'), said(attempt=7)]
    assert all(spelling != spellings[0] for spelling in spellings[1:])
    digests = [f"{number:064x}" for number in range(len(spellings))]
    _, *answers = ask(script, {"what": "remember", "member": ME}, *map(signed, spellings, digests))
    assert [each["answer"]["nonce"] for each in answers] == [0, 1, 2, 3]


def test_a_key_that_is_not_kept_any_more_signs_nothing(script):
    remember, forget = {"what": "remember", "member": ME}, {"what": "forget"}
    joined_anew = {"what": "remember", "member": NEW}
    answers = ask(
        script,
        *(remember, signed(said()), forget, signed(said(), MODEL)),
        *(joined_anew, signed(said(), MODEL), signed(said(), MODEL, NEW)),
    )
    assert answers[1]["answer"]["nonce"] == 0
    for refused in (answers[3], answers[5]):
        assert "the key of this device is not kept here any more" in refused["error"]
    assert answers[6]["answer"]["nonce"] == 0
