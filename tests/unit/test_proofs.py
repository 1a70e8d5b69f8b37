"""Nodes with a key of their own: what the coordinator takes for a proof, and what not."""

import pytest

from tutti.adapters.identities.ed25519 import Ed25519Key, verify
from tutti.core.errors import Forbidden
from tutti.services.proofs import CONNECTING, REMEMBERED, Proofs

NOW = 1_800_000_000
KEY, OTHER = Ed25519Key(bytes(32)), Ed25519Key(bytes([1] * 32))


def shown(
    node: str = "ada",
    time: int = 1000 * NOW,
    use: str = CONNECTING,
    *,
    public: Ed25519Key = KEY,
    private: Ed25519Key = KEY,
) -> str:
    return f"ed25519:{public.public}:{time}:{private.sign(f'tutti {node} {time} {use}'.encode()).hex()}"


@pytest.fixture
def proofs() -> Proofs:
    return Proofs(verify, lambda: float(NOW))


def test_a_proof_stands_for_the_key_and_is_good_once(proofs):
    assert proofs.stands_for(shown()) == f"ed25519:{KEY.public}"
    proofs.check("ada", shown(), CONNECTING)
    proofs.check("ada", shown(time=1000 * NOW - 1), CONNECTING)  # in no order
    with pytest.raises(Forbidden, match="shown before"):
        proofs.check("ada", shown(), CONNECTING)


def test_a_secret_stands_for_itself(proofs):
    assert proofs.stands_for("a secret of many characters") == "a secret of many characters"
    proofs.check("ada", "a secret of many characters", CONNECTING)
    proofs.check("ada", "a secret of many characters", CONNECTING)


REFUSED = {
    "the key alone": (f"ed25519:{KEY.public}", "came the key"),
    "another's signature": (shown(private=OTHER), "not that of node 'ada'"),
    "another node's proof": (shown("grace"), "not that of node 'ada'"),
    "of another time": (shown().replace(str(1000 * NOW), str(1000 * NOW + 1)), "not that of node 'ada'"),
    "for a request": (shown(use="GET /api/v1/browser/here"), "not that of node 'ada' for `device:register`"),
    "of yesterday": (shown(time=1000 * (NOW - 86_400)), "1440 minutes behind the coordinator's: set it right"),
    "of tomorrow": (shown(time=1000 * (NOW + 86_400)), "1440 minutes ahead of the coordinator's: set it right"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_no_proof_is_refused_in_words(proofs, what):
    text, reason = REFUSED[what]
    with pytest.raises(Forbidden, match=reason):
        proofs.check("ada", text, CONNECTING)


def test_of_very_many_proofs_the_oldest_are_forgotten_and_not_taken_again(proofs):
    for number in range(REMEMBERED + 1):
        proofs.check("ada", shown(time=1000 * NOW + number), CONNECTING)
    with pytest.raises(Forbidden, match="shown before"):
        proofs.check("ada", shown(), CONNECTING)
    with pytest.raises(Forbidden, match="shown before"):
        proofs.check("ada", shown(time=1000 * NOW + REMEMBERED), CONNECTING)
    proofs.check("ada", shown(time=1000 * NOW + REMEMBERED + 1), CONNECTING)
