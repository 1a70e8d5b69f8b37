"""Keys that a coordinator keeps: one for each of its roles, and one for each account of its ledger.

All come from one secret of 32 bytes, so that a copy of `chain.key` is a copy of them all. An account that is named
by an address, 0x and 40 hex digits, is its owner's: it can be paid, and nobody here can spend what it has.
"""

import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from eth_account import Account
from eth_account.signers.local import LocalAccount
from eth_utils import keccak, to_checksum_address

from tutti.adapters.identities.ed25519 import secret_at
from tutti.core.errors import Forbidden

ROLES = ("operator", "arbiter", "guardian", "deployer")
_ADDRESS = re.compile(r"0x[0-9a-fA-F]{40}")


class NotInCustody(Forbidden):
    """The account's owner keeps its key: only a transaction from its own wallet can do this."""


class Wallets:
    def __init__(self, secret: bytes) -> None:
        self._secret = secret
        self.account = lru_cache(maxsize=10_000)(self._account)

    @classmethod
    def at(cls, file: Path) -> "Wallets":
        """Those of a key file, made at the first call; raises UserError or StorageError."""
        return cls(secret_at(file))

    def role(self, name: str) -> LocalAccount:
        """One of ROLES."""
        return self._derive(f"role/{name}")

    def address(self, account: str) -> str:
        """Where an account of the ledger lies on the chain."""
        if _ADDRESS.fullmatch(account):
            return str(to_checksum_address(account))
        return str(self.account(account).address)

    def _account(self, name: str) -> LocalAccount:
        """The key of an account; raises NotInCustody for one that is an address."""
        if _ADDRESS.fullmatch(name):
            raise NotInCustody(f"{name} holds its own key: this needs a transaction from its wallet")
        return self._derive(f"account/{name}")

    def _derive(self, path: str) -> LocalAccount:
        key: LocalAccount = Account.from_key(keccak(self._secret + path.encode()))
        return key


def sign(key: LocalAccount, transaction: Mapping[str, Any]) -> tuple[bytes, str]:
    """The signed transaction, and its hash."""
    signed = key.sign_transaction(dict(transaction))
    return bytes(signed.raw_transaction), "0x" + bytes(signed.hash).hex()
