"""Nodes with a key of their own: what the coordinator takes for a proof, and what not."""

import pytest

from tutti.adapters.identities.secp256k1 import Secp256k1Key, verify
from tutti.core.errors import Forbidden, Unproven
from tutti.services.proofs import CONNECTING, REMEMBERED, Proofs, is_public, key_of, statement

NOW = 1_800_000_000
KEY, OTHER = Secp256k1Key(bytes(32)), Secp256k1Key(bytes([1] * 32))
CHALLENGE = "00112233445566ff"


def shown(
    node: str = "ada",
    time: int = 1000 * NOW,
    use: str = CONNECTING,
    *,
    challenge: str = CHALLENGE,
    private: Secp256k1Key = KEY,
) -> str:
    signature = private.sign(statement(node, challenge, time, use)).hex()
    return f"secp256k1:{KEY.public}:{challenge}:{time}:{signature}"


def started() -> Proofs:
    proofs = Proofs(verify, lambda: float(NOW))
    proofs.challenge = CHALLENGE
    return proofs


@pytest.fixture
def proofs() -> Proofs:
    return started()


def test_a_proof_stands_for_the_key_and_is_good_once(proofs):
    assert proofs.stands_for(shown()) == f"secp256k1:{KEY.public}"
    proofs.check("ada", shown(), CONNECTING)
    proofs.check("ada", shown(time=1000 * NOW - 1), CONNECTING)  # in no order
    with pytest.raises(Forbidden, match="shown before"):
        proofs.check("ada", shown(), CONNECTING)


def test_a_secret_stands_for_itself(proofs):
    assert proofs.stands_for("a secret of many characters") == "a secret of many characters"
    proofs.check("ada", "a secret of many characters", CONNECTING)
    proofs.check("ada", "a secret of many characters", CONNECTING)


REFUSED = {
    "the key alone": (f"secp256k1:{KEY.public}", "came the key"),
    "another's signature": (shown(private=OTHER), "not that of node 'ada'"),
    "another node's proof": (shown("grace"), "not that of node 'ada'"),
    "of another start, changed": (shown(challenge="f" * 16).replace("f" * 16, CHALLENGE), "not that of node 'ada'"),
    "of another time": (shown().replace(str(1000 * NOW), str(1000 * NOW + 1)), "not that of node 'ada'"),
    "for a request": (shown(use="GET /api/v1/browser/here"), "not that of node 'ada' for `device:register`"),
}
OUTDATED = {
    "of yesterday": (shown(time=1000 * (NOW - 86_400)), "1440 minutes behind this coordinator's clock"),
    "of tomorrow": (shown(time=1000 * (NOW + 86_400)), "1440 minutes ahead of this coordinator's clock"),
    "of another start": (shown(challenge="f" * 16), "from before this coordinator started: ask for its challenge"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_no_proof_is_refused_in_words(proofs, what):
    text, reason = REFUSED[what]
    with pytest.raises(Forbidden, match=reason):
        proofs.check("ada", text, CONNECTING)


@pytest.mark.parametrize("what", OUTDATED)
def test_a_proof_that_was_good_is_asked_for_anew(proofs, what):
    text, reason = OUTDATED[what]
    with pytest.raises(Unproven, match=reason):
        proofs.check("ada", text, CONNECTING)


def test_what_was_overheard_before_a_restart_is_worth_nothing_after_it():
    before, after = Proofs(verify, lambda: float(NOW)), Proofs(verify, lambda: float(NOW))
    for text in (shown(challenge=before.challenge), shown(challenge=before.challenge, time=1000 * NOW + 1)):
        with pytest.raises(Unproven, match="from before this coordinator started"):
            after.check("ada", text, CONNECTING)  # whether it was shown before or not
        before.check("ada", text, CONNECTING)
    after.check("ada", shown(challenge=after.challenge), CONNECTING)


def test_of_very_many_proofs_the_oldest_are_forgotten_and_not_taken_again(proofs):
    for number in range(REMEMBERED + 1):
        proofs.check("ada", shown(time=1000 * NOW + number), CONNECTING)
    with pytest.raises(Forbidden, match="shown before"):
        proofs.check("ada", shown(), CONNECTING)
    with pytest.raises(Forbidden, match="shown before"):
        proofs.check("ada", shown(time=1000 * NOW + REMEMBERED), CONNECTING)
    proofs.check("ada", shown(time=1000 * NOW + REMEMBERED + 1), CONNECTING)


OLDER = {
    "the key": f"ed25519:{'ab' * 32}",
    "a proof of it": f"ed25519:{'ab' * 32}:{1000 * NOW}:{'cd' * 64}",
    "a key that is too short": "secp256k1:abcd",
    "a key in capitals": f"secp256k1:{'AB' * 64}",
    "a key with a line after it": f"secp256k1:{KEY.public}\n",
}


@pytest.mark.parametrize("what", OLDER)
def test_no_other_key_is_taken_for_a_secret(proofs, what):
    assert is_public(OLDER[what])
    for refuses in (proofs.stands_for, key_of, lambda shown: proofs.check("ada", shown, CONNECTING)):
        with pytest.raises(Forbidden, match="of another version than the coordinator, so load it again and join anew"):
            refuses(OLDER[what])


def test_what_a_removed_node_has_shown_is_forgotten(proofs):
    proofs.check("ada", shown(), CONNECTING)
    proofs.forget("ada")
    proofs.check("ada", shown(), CONNECTING)
