"""The owner's policy: hours, names, limits, its file, and the batch size by memory."""

from datetime import datetime, timedelta

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tutti.core.registry import Choice
from tutti.domain.nodes import Capabilities, Terms
from tutti.domain.policy import (
    GB,
    BadPolicy,
    Policy,
    Window,
    allows,
    batch_size_for,
    closed,
    is_open,
    load_policy,
    offered,
    parse_size,
    parse_window,
    terms,
)
from tutti.domain.spec import DataSchema, Training
from tutti.wire.messages import Start

MONDAY = datetime(2024, 1, 1)  # 2024-01-01 was a Monday
NOON = MONDAY.replace(hour=12)


def start(name: str = "digits", model: str = "mlp", cohort: int = 4, epochs: int = 1) -> Start:
    return Start(
        job="j1",
        name=name,
        round=1,
        attempt=0,
        rounds=3,
        task="train",
        model=Choice(model),
        data=DataSchema("classification", (64,), 10),
        weights="0" * 64,
        seed=1,
        cohort=cohort,
        training=Training(epochs=epochs),
    )


def at(day: int, hour: int, minute: int = 0) -> datetime:
    """`day` 0 is a Monday."""
    return MONDAY + timedelta(days=day, hours=hour, minutes=minute)


def test_an_empty_policy_allows_everything() -> None:
    assert load_policy("") == Policy()
    assert allows(Policy(), start(), NOON) is None
    assert terms(Policy(), NOON) == Terms()


def test_names_are_glob_patterns_and_forbidding_wins() -> None:
    policy = load_policy('allow_jobs = ["digits*"]\nforbid_jobs = ["*-test"]\nforbid_models = ["resnet*"]')
    assert allows(policy, start("digits-2"), NOON) is None
    assert allows(policy, start("digits-test"), NOON) == "its owner does not allow job 'digits-test'"
    assert allows(policy, start("iris"), NOON) == "its owner does not allow job 'iris'"
    assert allows(policy, start(model="resnet18"), NOON) == "its owner does not allow model 'resnet18'"
    only = load_policy('allow_models = ["mlp"]')
    assert allows(only, start(model="cnn"), NOON) == "its owner does not allow model 'cnn'"


def test_small_cohorts_and_long_work_are_refused() -> None:
    policy = load_policy("min_cohort = 3\nmax_epochs = 5")
    assert allows(policy, start(cohort=3, epochs=5), NOON) is None
    assert allows(policy, start(cohort=2), NOON) == "its owner wants cohorts of 3 or more, this one has 2"
    assert allows(policy, start(epochs=6), NOON) == "its owner allows 5 local epochs a round, the job asks for 6"


@pytest.mark.parametrize(
    ("text", "inside", "outside"),
    [
        ("09:00-17:30", [at(0, 9), at(6, 17, 29)], [at(0, 8, 59), at(0, 17, 30)]),
        ("22:00-06:00", [at(0, 22), at(1, 5, 59), at(0, 0)], [at(0, 21, 59), at(1, 6)]),
        ("fri 22:00-06:00", [at(4, 22), at(5, 5, 59)], [at(4, 5), at(5, 22), at(5, 6)]),
        ("sun 23:00-01:00", [at(6, 23), at(0, 0, 59)], [at(0, 23), at(0, 1)]),
        ("sat,sun 00:00-24:00", [at(5, 0), at(6, 23, 59)], [at(4, 23, 59), at(0, 0)]),
        ("fri-mon 08:00-09:00", [at(4, 8), at(0, 8)], [at(1, 8), at(3, 8)]),
        ("MON-WED,fri 8:00-9:00", [at(1, 8), at(4, 8)], [at(3, 8)]),
    ],
)
def test_windows_hold_their_first_minute_and_not_their_last(
    text: str, inside: list[datetime], outside: list[datetime]
) -> None:
    window = parse_window(text)
    assert [window.contains(moment) for moment in inside] == [True] * len(inside)
    assert [window.contains(moment) for moment in outside] == [False] * len(outside)


@given(st.integers(0, 1439), st.integers(0, 1440), st.frozensets(st.integers(0, 6), min_size=1), st.integers(0, 10079))
def test_a_window_is_open_for_its_length_after_each_start(start: int, end: int, days: frozenset[int], at: int) -> None:
    if start == end:
        return
    length = (end - start) % 1440 or 1440
    begins = [1440 * day + start for day in days]
    expected = any((at - begin) % 10080 < length for begin in begins)
    assert Window(start, end, days).contains(MONDAY + timedelta(minutes=at)) is expected


def test_any_of_several_windows_opens() -> None:
    policy = load_policy('hours = ["22:00-06:00", "sat 00:00-24:00"]')
    assert is_open(policy, at(5, 12))
    assert not is_open(policy, at(4, 12))
    assert allows(policy, start(), at(4, 12)) == "outside its owner's hours"
    assert terms(policy, at(4, 12)).open is False
    assert load_policy('hours = "22:00-06:00"').hours == (Window(1320, 360),)


def test_the_terms_name_what_a_coordinator_can_use() -> None:
    policy = load_policy('allow_jobs = ["a*"]\nallow_models = ["mlp"]\nmin_cohort = 2\nforbid_jobs = ["ab"]')
    assert terms(policy, NOON) == Terms(("a*",), ("mlp",), 2, True)


def test_the_offer_is_the_lent_part_of_the_machine() -> None:
    machine = Capabilities(cpus=8, memory=32 * GB, gpus=("H100",), platform="Linux x86_64")
    assert offered(machine, Policy()) == machine
    policy = load_policy('max_cpus = 2\nmax_ram = "4 GB"\nallow_gpu = false')
    assert offered(machine, policy) == Capabilities(2, 4 * GB, (), "Linux x86_64")
    assert offered(Capabilities(cpus=1, memory=GB), policy) == Capabilities(1, GB)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("min_cohort = 0", "policy: min_cohort: Expected `int` >= 1; came 0"),
        ('min_cohort = "3"', "policy: min_cohort: Expected `int`, got `str`; came '3'"),
        ("max_ram = 4", 'policy: max_ram: expected a size such as "4 GB" or "512 MiB"; came 4'),
        ('max_ram = "0 GB"', 'policy: max_ram: expected a size such as "4 GB"'),
        ('max_ram = "four GB"', 'policy: max_ram: expected a size such as "4 GB"'),
        ("hours = 22", "policy: hours: expected windows"),
        ('hours = ["22-06"]', 'policy: hours: expected hours such as "22:00-06:00"'),
        ('hours = [""]', "policy: hours: expected hours such as"),
        ('hours = "25:00-06:00"', "policy: hours: expected times from 00:00 to 24:00, not '25:00-06:00'"),
        ('hours = "22:60-06:00"', "policy: hours: expected times from 00:00 to 24:00"),
        ('hours = "06:00-24:01"', "policy: hours: expected times from 00:00 to 24:00"),
        ('hours = "06:00-06:00"', "policy: hours: '06:00-06:00' is no time at all"),
        ('hours = "mo 06:00-07:00"', "policy: hours: expected weekdays out of mon, tue"),
        ('hours = "mon-xyz 06:00-07:00"', "policy: hours: expected weekdays out of mon, tue"),
        ("max_gpu = 0", "policy: max_gpu: Expected `float` > 0.0; came 0"),
        ("max_gpu = 0.5\nallow_gpu = false", "max_gpu is a share of what allow_gpu = false forbids"),
        ("allow_gpu = 1", "policy: allow_gpu: Expected `bool`, got `int`; came 1"),
        ('allow_jobs = "digits"', "policy: allow_jobs: Expected `array`, got `str`; came 'digits'"),
        ("max_cpu = 2", "policy: there is no field 'max_cpu'; there are: allow_jobs, "),
        ("min_cohort = ", "the policy is not valid TOML: "),
    ],
)
def test_a_malformed_file_names_the_field_what_was_expected_and_what_came(text: str, said: str) -> None:
    with pytest.raises(BadPolicy) as caught:
        load_policy(text)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("text", "size"),
    [("4 GB", 4 * 10**9), ("1.5gb", 1_500_000_000), ("512 MiB", 512 * 2**20), ("2TB", 2 * 10**12), ("64 kB", 64_000)],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    ("gigabytes", "batch_size"),
    [
        *((0.5, 4), (2, 4), (2.99, 4), (3, 8), (4, 8), (5.99, 8), (6, 16), (8, 16)),
        *((11.99, 16), (12, 32), (16, 32), (23.99, 32), (24, 64), (512, 64)),
    ],
)
def test_batch_size_at_every_boundary(gigabytes: float, batch_size: int) -> None:
    assert batch_size_for(int(gigabytes * GB)) == batch_size


@given(st.integers(2 * GB, 64 * GB))
def test_batch_size_stays_within_the_documented_ranges(ram: int) -> None:
    ranges = [(2, 4, 4, 8), (4, 8, 8, 16), (8, 16, 16, 32), (16, 65, 32, 64)]
    low, high = next((low, high) for begin, end, low, high in ranges if begin * GB <= ram < end * GB)
    assert low <= batch_size_for(ram) <= high


def test_the_owners_limit_steers_the_batch_size() -> None:
    lent = offered(Capabilities(memory=64 * GB), load_policy('max_ram = "4 GB"'))
    assert batch_size_for(lent.memory) == 8


def test_no_job_has_a_module_imported_that_the_owner_did_not_list() -> None:
    wanted = {
        "module:entry=lib2to3.__main__:x": "lib2to3.__main__",
        "module:hospital.models.evil:Net": "hospital.models.evil",  # the entry by position
        "module:entry=hospital.models_evil:Net": "hospital.models_evil",
        "module:entry=": "",
        "module": "",
    }
    for policy in (Policy(), load_policy('allow_modules = ["hospital.models"]\nallow_models = ["module"]')):
        for model, module in wanted.items():
            reason = allows(policy, msgspec.structs.replace(start(), model=Choice.parse(model)), NOON)
            assert reason == (
                f"its owner does not let jobs import module '{module}': "
                f'add allow_modules = ["{module}"] to that node\'s policy file (`tutti join --policy`)'
            )


@pytest.mark.parametrize("patterns", ['["hospital.models"]', '["other", "hospital.*"]', '["*"]'])
def test_listed_modules_are_allowed_and_told(patterns: str) -> None:
    policy = load_policy(f"allow_modules = {patterns}")
    wish = msgspec.structs.replace(start(), model=Choice.parse("module:entry=hospital.models:Net"))
    assert allows(policy, wish, NOON) is None
    assert terms(policy, NOON) == Terms(modules=policy.allow_modules)


def test_a_battery_counts_where_its_owner_says_so() -> None:
    policy = load_policy('min_battery = 0.3\nhours = "06:00-22:00"')
    assert closed(policy, NOON, None) is None
    assert closed(policy, NOON, 0.3) is None
    assert closed(policy, NOON, 0.25) == "its battery is at 25%, its owner wants 30% or more"
    assert closed(policy, NOON.replace(hour=23), 0.9) == "outside its owner's hours"
    assert closed(Policy(), NOON, 0.01) is None
    with pytest.raises(BadPolicy, match="min_battery"):
        load_policy("min_battery = 30")
