"""Ed25519 keys (https://www.rfc-editor.org/rfc/rfc8032): one file, for its owner's eyes only."""

import os
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from tutti.core.errors import StorageError, UserError


class Ed25519Key:
    """A private key. `public` is its public key, 64 hex digits."""

    def __init__(self, secret: bytes) -> None:
        self._key = Ed25519PrivateKey.from_private_bytes(secret)
        self.public = self._key.public_key().public_bytes_raw().hex()

    def sign(self, message: bytes) -> bytes:
        """64 bytes; the same message has always the same signature."""
        return self._key.sign(message)

    @classmethod
    def at(cls, file: Path) -> "Ed25519Key":
        """The key in a file (64 hex digits), made at the first call; raises UserError or StorageError."""
        return cls(secret_at(file))


def secret_at(file: Path) -> bytes:
    """The 32 bytes in a key file (64 hex digits), drawn at the first call; raises UserError or StorageError."""
    damaged = UserError(f"the key file {file} is damaged: expected 64 hex digits; restore it from a copy")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        _create(file)
        secret = bytes.fromhex(file.read_text(encoding="ascii"))
    except OSError as error:
        raise StorageError(f"cannot use the key file {file}: {error.strerror or error}") from None
    except ValueError:
        raise damaged from None
    if len(secret) != 32:
        raise damaged
    return secret


def verify(public: str, message: bytes, signature: bytes) -> bool:
    """Whether the owner of `public` (64 hex digits) signed; False too for what is no key or signature."""
    try:
        Ed25519PublicKey.from_public_bytes(bytes.fromhex(public)).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True


def _create(file: Path) -> None:
    """Whole or not at all, and only if it is not there."""
    if file.exists():
        return
    partial = file.with_name(f".{file.name}.{os.getpid()}")
    with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as opened:
        opened.write(os.urandom(32).hex())
        opened.flush()
        os.fsync(opened.fileno())
    try:
        os.link(partial, file)  # unlike a rename, it does not replace a key that somebody else has just made
    except FileExistsError:
        pass
    finally:
        partial.unlink()
