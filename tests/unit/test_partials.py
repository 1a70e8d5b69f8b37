"""Sums of some of a round's updates as bytes: exact, of one length, and nothing else is taken for one."""

import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tutti.core.params import Entry, Layout, Params, Role
from tutti.core.reduce import Mean, Update, fold, weighted_mean
from tutti.wire import partials
from tutti.wire.partials import BadPartial

LAYOUT = Layout((Entry("w", (3, 2)), Entry("seen", (1,), "int64", Role.COUNTER), Entry("b", (2,), role=Role.BUFFER)))
COHORT, HEAVIEST = 6, 1000
MEAN = weighted_mean()


def updates(seed: int, count: int = COHORT) -> list[Update]:
    rng = np.random.default_rng(seed)
    deltas = (rng.standard_normal((count, LAYOUT.size)) * 10.0 ** rng.integers(-6, 2)).astype(np.float32)
    weights = rng.integers(1, HEAVIEST + 1, count)
    return [Update(Params(LAYOUT, delta), int(weight)) for delta, weight in zip(deltas, weights, strict=True)]


def summed(some: list[Update]) -> Mean:
    acc = MEAN.zero(LAYOUT, COHORT, HEAVIEST)
    MEAN.add(acc, *some)
    return acc


def sent(acc: Mean) -> bytes:
    same = MEAN.zero(acc.layout, acc.max_updates, acc.max_weight)
    room = partials.room_for(same)
    MEAN.merge(same, acc)
    return bytes(partials.encode(same, room))


def test_sums_travel_as_they_were_made() -> None:
    """In place: a copy of them would be twice as large as the model."""
    acc = MEAN.zero(LAYOUT, COHORT, HEAVIEST)
    room = partials.room_for(acc)
    MEAN.add(acc, *updates(1))
    assert partials.encode(acc, room) is room
    assert bytes(room) == sent(summed(updates(1)))
    assert np.shares_memory(acc.sums, np.frombuffer(room, np.uint8))
    assert np.shares_memory(acc.maxima, np.frombuffer(room, np.uint8))


@given(seed=st.integers(0, 2**32 - 1), cut=st.integers(1, COHORT - 1))
def test_sums_that_travelled_make_the_same_mean_to_the_bit(seed: int, cut: int) -> None:
    all_of_them = updates(seed)
    acc = summed(all_of_them[:cut])
    MEAN.merge(acc, partials.decode(sent(summed(all_of_them[cut:])), acc))
    expected = fold(MEAN, all_of_them, LAYOUT, HEAVIEST)
    assert MEAN.finish(acc).buffer.tobytes() == expected.buffer.tobytes()


def test_it_comes_back_as_it_was() -> None:
    acc = summed(updates(1))
    back = partials.decode(sent(acc), acc)
    assert (back.sums == acc.sums).all()
    assert (back.maxima == acc.maxima).all()
    assert (back.count, back.weight) == (acc.count, acc.weight)
    partials.check(back, acc.count, acc.weight)
    with pytest.raises(BadPartial, match="expected 5 updates"):
        partials.check(back, 5, acc.weight)


def test_for_another_model_or_cohort() -> None:
    data = sent(summed(updates(1)))
    renamed = Layout((Entry("v", (3, 2)), *LAYOUT.entries[1:]))
    larger = Layout((Entry("w", (4, 2)), *LAYOUT.entries[1:]))
    for like, why in (
        (MEAN.zero(renamed, COHORT, HEAVIEST), "another model"),
        (MEAN.zero(LAYOUT, COHORT, 2**24), "another size"),
        (MEAN.zero(larger, COHORT, HEAVIEST), "bytes, came"),
    ):
        with pytest.raises(BadPartial, match=why):
            partials.decode(data, like)


@pytest.mark.parametrize("length", [0, 1, 63, 64, -1])
def test_bytes_of_another_length(length: int) -> None:
    data, like = sent(summed(updates(1))), MEAN.zero(LAYOUT, COHORT, HEAVIEST)
    for wrong in (data[:length], data + b"\0"):
        with pytest.raises(BadPartial, match="bytes, came"):
            partials.decode(wrong, like)


def test_numbers_that_cannot_be() -> None:
    """Each would overflow the sum, or spoil the mean of everybody."""
    acc = summed(updates(1))
    good, sums = sent(acc), 64
    counter, maxima = sums + 8 * 6, sums + 8 * LAYOUT.size
    for at, packed, why in (
        (0, b"TUTTI\x00P2", "not a partial sum of this version"),
        (8, struct.pack("<I", 0), "cannot weigh"),
        (8, struct.pack("<I", COHORT + 1), "cannot weigh"),
        (16, struct.pack("<Q", 2**64 - 1), "cannot weigh"),
        (16, struct.pack("<Q", COHORT - 1), "cannot weigh"),
        (sums, struct.pack("<q", -(2**63)), "larger than its updates can be"),
        (sums, struct.pack("<q", 2**63 - 1), "larger than its updates can be"),
        (counter, struct.pack("<q", 1), "no finite number"),
        (maxima, struct.pack("<f", float("nan")), "no finite number"),
        (maxima, struct.pack("<f", float("-inf")), "no finite number"),
    ):
        with pytest.raises(BadPartial, match=why):
            partials.decode(good[:at] + packed + good[at + len(packed) :], acc)


@given(st.binary(max_size=200))
def test_any_bytes_are_refused_in_words(data: bytes) -> None:
    with pytest.raises(BadPartial):
        partials.decode(data, MEAN.zero(LAYOUT, COHORT, HEAVIEST))
