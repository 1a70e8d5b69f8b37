"""Identity: a key that proves who says something."""

from typing import Protocol


class SigningKey(Protocol):
    @property
    def public(self) -> str:
        """By which anybody can check a signature, in hex."""
        ...

    def sign(self, digest: bytes) -> bytes: ...
