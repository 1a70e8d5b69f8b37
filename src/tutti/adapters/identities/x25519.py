"""Sealed boxes: anybody can close one for a key's owner, only the owner can open it.

X25519 with a key pair for each box, HKDF-SHA256, ChaCha20-Poly1305; a box is the passing public key and the ciphertext.
"""

import os
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from tutti.core.errors import CorruptBlob, StorageError, UserError

PUBLIC = 32
NONCE = bytes(12)
"""Every box has a key of its own, so one nonce does for all."""


def seal(public: str, data: bytes) -> bytes:
    """A box for the owner of a public key (64 hex digits); raises UserError for what is none."""
    try:
        owner = X25519PublicKey.from_public_bytes(bytes.fromhex(public))
        passing = X25519PrivateKey.generate()
        shared = passing.exchange(owner)
    except ValueError:
        raise UserError(f"expected a public key of 64 hex digits, came {public[:80]!r}") from None
    passed = passing.public_key().public_bytes_raw()
    return passed + _cipher(shared, passed, bytes.fromhex(public)).encrypt(NONCE, data, None)


class SealingKey:
    """A private key; `public` is what others need to seal."""

    def __init__(self, secret: bytes) -> None:
        self._key = X25519PrivateKey.from_private_bytes(secret)
        self._public = self._key.public_key().public_bytes_raw()

    @classmethod
    def at(cls, file: Path) -> "SealingKey":
        """The key in a file that only its owner can read, made if there is none."""
        try:
            if not file.exists():
                file.parent.mkdir(parents=True, exist_ok=True)
                with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as made:
                    made.write(os.urandom(32))
            return cls(file.read_bytes())
        except (OSError, ValueError) as error:
            raise StorageError(f"cannot use the key {file}: {error}") from None

    @property
    def public(self) -> str:
        return self._public.hex()

    def open(self, box: bytes) -> bytes:
        """Raises CorruptBlob for a box that was sealed for somebody else, or changed."""
        passed = bytes(box[:PUBLIC])
        try:
            shared = self._key.exchange(X25519PublicKey.from_public_bytes(passed))
            return _cipher(shared, passed, self._public).decrypt(NONCE, box[PUBLIC:], None)
        except (ValueError, InvalidTag):
            raise CorruptBlob("the box was sealed for another key, or was changed on the way") from None


def _cipher(shared: bytes, passed: bytes, public: bytes) -> ChaCha20Poly1305:
    return ChaCha20Poly1305(HKDF(SHA256(), 32, None, b"tutti sealed part" + passed + public).derive(shared))
