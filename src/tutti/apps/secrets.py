"""Secrets in files: those that a person sets are read, those that are made here are written."""

import os
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


def write_secret(file: Path, text: str) -> None:
    """Write a file that only its owner can read, whole or not at all."""
    partial = file.with_name(f".{file.name}.{os.getpid()}")
    with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as opened:
        opened.write(text)
        opened.flush()
        os.fsync(opened.fileno())
    partial.replace(file)
