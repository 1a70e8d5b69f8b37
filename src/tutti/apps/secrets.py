"""Secrets that a person sets."""

from hashlib import sha256
from pathlib import Path

from tutti.core.errors import UserError

SHORTEST, LEAST_DIFFERENT = 32, 10
"""Characters of a secret, and different ones among them: `changeme` and rows of zeros are none."""


def read_secret(file: Path) -> str:
    """What a file holds; raises UserError for what can be guessed."""
    try:
        text = file.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the secret in {file}: {error}") from None
    if len(text) < SHORTEST or len(set(text)) < LEAST_DIFFERENT:
        raise UserError(
            f"{file}: expected {SHORTEST} random characters or more, came {len(text)} with {len(set(text))} different "
            f"ones: `openssl rand -hex 32 > {file}` makes a secret"
        )
    return text


def read_jwt_secret(file: Path) -> bytes:
    """The 32 bytes that sign access tokens, made of what a file holds; raises as `read_secret`."""
    return sha256(read_secret(file).encode()).digest()
