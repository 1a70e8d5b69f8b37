"""Accounts as bytes: JSON of the msgspec types."""

from typing import TypeVar

import msgspec

from tutti.core.errors import StorageError
from tutti.domain.accounts import AuditEntry, Record

T = TypeVar("T")

_records: msgspec.json.Decoder[Record] = msgspec.json.Decoder(Record)
_entries: msgspec.json.Decoder[AuditEntry] = msgspec.json.Decoder(AuditEntry)


def decode_record(data: bytes, where: str) -> Record:
    """Raises StorageError for what is no record."""
    return _decode(_records, data, where)


def decode_entry(data: bytes, where: str) -> AuditEntry:
    """Raises StorageError for what is no entry."""
    return _decode(_entries, data, where)


def _decode(decoder: "msgspec.json.Decoder[T]", data: bytes, where: str) -> T:
    try:
        return decoder.decode(data)
    except msgspec.MsgspecError as error:
        raise StorageError(f"the account store {where} is damaged ({error}): restore it from a copy") from error
