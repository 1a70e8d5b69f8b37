"""Quotas of organisations, by hand."""

import pytest

from tutti.core.registry import Choice
from tutti.domain.history import Contribution
from tutti.domain.jobs import Job, Status
from tutti.domain.quotas import Quota, Used, excess, used
from tutti.domain.spec import DataSchema, JobSpec

DAY = 86_400.0
NOW = 100 * DAY
HAS = Used(jobs=2, nodes=3, node_hours=10.0, stored=1000)


def job(by: str, days_ago: float, hours: float, status: Status = Status.COMPLETED) -> Job:
    return Job(
        id=f"{by}-{days_ago:g}",
        spec=JobSpec("toy", Choice("linear")),
        data=DataSchema("classification", (4,), 2),
        submitted_at=NOW - days_ago * DAY,
        by=by,
        status=status,
        contributions={"n1": Contribution(seconds=1800 * hours), "n2": Contribution(seconds=1800 * hours)},
    )


def test_what_an_organisation_has() -> None:
    jobs = [job("zoe at home", 1, 2.0), job("zoe", 29, 3.0, Status.WAITING), job("zoe", 31, 50.0), job("ada", 1, 70.0)]
    invited = {"n1": "zoe at home", "n2": "ada", "n3": "zoe"}
    found = used(lambda who: who.startswith("zoe"), jobs, invited, lambda job: 100, NOW)
    assert found == Used(jobs=1, nodes=2, node_hours=5.0, stored=300)


@pytest.mark.parametrize(
    ("quota", "one_more", "reason"),
    [
        (Quota(), "job", None),
        (Quota(jobs=3, nodes=4, node_hours=10.5, stored=1001), "job", None),
        (Quota(jobs=2), "job", "may have 2 jobs at once and has 2: wait for one to end, stop one"),
        (Quota(jobs=0), "node", None),
        (Quota(nodes=3), "node", "may have 3 nodes and has 3: remove one (`tutti nodes rm`)"),
        (Quota(nodes=3), "job", None),
        (Quota(node_hours=10), "job", "may use 10 node hours in 30 days and its jobs of that time took 10.0: wait"),
        (Quota(stored=1000), "job", "may keep 1,000 bytes of its jobs and keeps 1,000: keep fewer models of each"),
    ],
)
def test_what_is_too_much(quota: Quota, one_more: str, reason: str | None) -> None:
    assert excess(quota, HAS, one_more) == reason  # type: ignore[arg-type]
