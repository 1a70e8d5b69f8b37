"""The chain of entries: each names the hash of the one before and is signed, so that nothing can be changed unseen.

What is hashed is an entry's JSON without hash and signature, fields and keys in sorted order, no spaces: SHA-256 of
it is `hash`, and the signature (Ed25519) is over the 32 bytes of that. A verifier needs the entries and the public
key, and trusts nobody; a chain that was cut short is found out by whoever noted a later hash.
"""

from collections.abc import Callable, Iterable
from hashlib import sha256
from typing import TypeAlias

import msgspec

from tutti.core.errors import StorageError, UserError
from tutti.domain.ledger.books import Books, Postings
from tutti.domain.ledger.operations import AnyOperation, Found

START = "0" * 64
"""What the first entry names as the one before."""

Sign: TypeAlias = Callable[[bytes], bytes]
Verify: TypeAlias = Callable[[str, bytes, bytes], bool]
"""(public key in hex, message, signature) -> whether the signature is good."""


class Entry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One line of the ledger. `at` is in milliseconds since the epoch; `seq` counts from 0, which is Found."""

    seq: int
    at: int
    key: str
    operation: AnyOperation
    postings: Postings
    previous: str
    hash: str = ""
    signature: str = ""


class BadChain(StorageError):
    """Somebody has changed the ledger: an entry that does not follow from those before it, or is not signed."""


_encoder = msgspec.json.Encoder(order="deterministic")


def seal(entry: Entry, sign: Sign) -> Entry:
    """The entry with its hash and signature."""
    digest = hash_of(entry)
    return msgspec.structs.replace(entry, hash=digest.hex(), signature=sign(digest).hex())


def hash_of(entry: Entry) -> bytes:
    bare = msgspec.to_builtins(msgspec.structs.replace(entry, hash="", signature=""))
    return sha256(_encoder.encode({name: bare[name] for name in bare if name not in ("hash", "signature")})).digest()


def verify_chain(entries: Iterable[Entry], verify: Verify, public_key: str, *, head: str | None = None) -> Books:
    """Replay a whole ledger and return its books; raises BadChain for the first entry that is not right.

    Checks the order, the links, every hash and signature, that each operation was allowed and moved what it must,
    and that the sums hold. With `head`, a hash that somebody noted, also that this entry is still there.
    """
    books, previous, seen, keys = Books(), START, head is None, set[str]()
    count = 0
    for count, entry in enumerate(entries, start=1):
        _check_links(entry, count - 1, previous, keys)
        if isinstance(entry.operation, Found) and entry.operation.public_key != public_key:
            raise BadChain(f"the ledger was founded with the key {entry.operation.public_key[:16]}…, not with yours")
        if not verify(public_key, bytes.fromhex(entry.hash), _unhex(entry)):
            raise BadChain(f"entry {entry.seq} is not signed by {public_key[:16]}…")
        _check_meaning(entry, books)
        books.apply(entry.operation, entry.postings, entry.at)
        keys.add(entry.key)
        previous, seen = entry.hash, seen or entry.hash == head
    if count == 0:
        raise BadChain("the ledger is empty: not even its founding is there")
    if not seen:
        raise BadChain(f"no entry has the hash {str(head)[:16]}…: the ledger was cut short or rewritten")
    if not books.totals().conserved:
        raise BadChain("the sums do not hold")
    return books


def _check_links(entry: Entry, seq: int, previous: str, keys: set[str]) -> None:
    if entry.seq != seq or entry.previous != previous:
        raise BadChain(f"entry {seq} is missing, or does not follow the one before it (came {entry.seq})")
    if isinstance(entry.operation, Found) != (seq == 0):
        raise BadChain(f"entry {seq}: a ledger is founded once, by its first entry")
    if hash_of(entry).hex() != entry.hash:
        raise BadChain(f"entry {seq} has been changed: its content does not have its hash")
    if entry.key in keys:
        raise BadChain(f"entry {seq}: its key {entry.key!r} was used before")


def _check_meaning(entry: Entry, books: Books) -> None:
    try:
        postings = books.decide(entry.operation, entry.at)
    except UserError as refusal:
        raise BadChain(f"entry {entry.seq} should have been refused: {refusal}") from None
    if postings != entry.postings:
        raise BadChain(f"entry {entry.seq} moves {entry.postings}, but its operation means {postings}")


def _unhex(entry: Entry) -> bytes:
    try:
        return bytes.fromhex(entry.signature)
    except ValueError:
        raise BadChain(f"entry {entry.seq}: its signature is not hexadecimal") from None
