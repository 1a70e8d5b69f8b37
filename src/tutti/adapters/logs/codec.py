"""Events as JSON, the form in which every log keeps them."""

import msgspec

from tutti.core.errors import StorageError, TuttiError
from tutti.domain.events import AnyEvent

_encoder = msgspec.json.Encoder()
_decoder: msgspec.json.Decoder[AnyEvent] = msgspec.json.Decoder(AnyEvent)


class BadEvent(TuttiError):
    """An event that could be written but not read back, such as one with a NaN in it."""


def encode(event: AnyEvent) -> tuple[bytes, AnyEvent]:
    """The JSON, and the event as it will be read back: who acts on it now sees what a replay will see.

    Raises BadEvent for what JSON cannot hold, before it can make a log unreadable.
    """
    try:
        data = _encoder.encode(event)
        return data, _decoder.decode(data)
    except (msgspec.MsgspecError, TypeError, ValueError) as error:
        raise BadEvent(f"cannot record {event!r}: {error}; numbers must be finite, and types as declared") from None


def decode(offset: int, data: bytes) -> AnyEvent:
    """The event stored at an offset; raises StorageError for what is not an event."""
    try:
        return _decoder.decode(data)
    except msgspec.MsgspecError as error:
        raise StorageError(f"event {offset} of the log is damaged ({error}): restore it from a copy") from error


def type_of(event: AnyEvent) -> str:
    """The name under which `decode` knows the event."""
    return type(event).__name__
