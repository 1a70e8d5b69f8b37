"""A pattern that ends in `$` would let a line feed through, for msgspec searches as Python does."""

from typing import get_args

import msgspec
import pytest

from tutti.domain import accounts, spec
from tutti.wire import messages

PATTERNED = {
    "job": (messages.JobId, "wards-1"),
    "blob": (messages.Blob, "a" * 64),
    "no blob": (messages.Blob, ""),
    "name": (spec.Name, "ward-1"),
    "account": (accounts.AccountName, "admin"),
    "organisation": (accounts.OrganisationName, "clinic"),
}


@pytest.mark.parametrize("name", PATTERNED)
def test_a_line_feed_at_the_end_is_refused(name):
    kind, value = PATTERNED[name]
    assert get_args(kind)
    assert msgspec.convert(value, kind) == value
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(value + "\n", kind)
