"""Jobs: ask for one, steer it, and read its rounds, metrics and models."""

from collections.abc import Callable, Container, Iterable, Sequence
from itertools import islice
from typing import Annotated, Literal, TypeVar

import msgspec
from fastapi import Depends, Header, Query, Request
from starlette.exceptions import HTTPException
from starlette.responses import Response

from tutti.apps.api.download import model_response
from tutti.apps.api.schema import After, Answer, Api, Body, Limit
from tutti.core.errors import NotFound
from tutti.domain.accounts import Identity, allows
from tutti.domain.forecast import Forecast, Usage, usage
from tutti.domain.history import RoundSummary
from tutti.domain.jobs import Job
from tutti.domain.ledger.operations import key_of
from tutti.domain.spec import JobSpec, load_spec
from tutti.services.coordinator import Coordinator
from tutti.services.forecast import Forecaster
from tutti.services.history import attempts_of
from tutti.services.manifest import Manifest
from tutti.services.market.desk import MarketDesk, Who
from tutti.services.views import (
    CheckView,
    ContributionView,
    EvaluationView,
    JobView,
    MetricPoint,
    ModelView,
    Page,
    RoundView,
    WhyView,
    check_view,
    contribution_views,
    job_evaluation,
    job_view,
    metric_points,
    model_views,
    round_views,
    rounds_with_model,
    status_of_job,
    why_view,
)

T = TypeVar("T")

Key = Annotated[str, Header(alias="Idempotency-Key", max_length=200)]
Text = Annotated[str, Query(max_length=200)]
NewJob = Annotated[JobSpec, Depends(Body(JobSpec, load_spec))]


class StopRequest(msgspec.Struct, frozen=True):
    reason: Annotated[str, msgspec.Meta(max_length=200)] = "asked"


def page(items: Sequence[T], limit: int, after: str) -> Page[T]:
    """A part of a list that only grows at its end; the cursor is a position."""
    if after and not after.isdecimal():
        raise HTTPException(422, f"after: expected the `next` of an earlier page, came {after!r}")
    start = int(after or 0)
    end = start + limit
    return Page(items=list(items[start:end]), next=str(end) if end < len(items) else None)


def page_by_name(items: Sequence[T], limit: int, after: str, name: Callable[[T], str]) -> Page[T]:
    """A part of a short list in which items may come and go anywhere; the cursor is the last item's name."""
    names = [name(item) for item in items]
    if after and after not in names:
        raise HTTPException(422, f"after: there is no {after!r} in this list")
    start = names.index(after) + 1 if after else 0
    end = start + limit
    return Page(items=list(items[start:end]), next=names[end - 1] if end < len(names) else None)


class JobRoutes:
    """`desk` knows who may spend what."""

    def __init__(self, coordinator: Coordinator, desk: MarketDesk) -> None:
        self._coordinator, self._desk = coordinator, desk
        self._forecaster = Forecaster(coordinator)

    def view(self, job: Job) -> JobView:
        return self.views([job])[0]

    def views(self, jobs: Iterable[Job]) -> list[JobView]:
        offers = self._coordinator.offers()
        return [job_view(job, offers, self._coordinator.trouble(job.id)) for job in jobs]

    def _page(self, limit: int, after: str, wanted: Callable[[Job], bool]) -> Page[Job]:
        """Of the wanted jobs, newest first, those after the job `after`, which may not be wanted any more itself."""
        jobs = reversed(self._coordinator.jobs.values())
        if after and not any(job.id == after for job in jobs):  # this goes on behind it
            raise HTTPException(422, f"after: expected the `next` of an earlier page, came {after!r}")
        found = list(islice(filter(wanted, jobs), limit + 1))
        return Page(items=found[:limit], next=found[limit - 1].id if len(found) > limit else None)

    async def list_jobs(
        self, limit: Limit = 50, after: After = "", status: Text = "", name: Text = "", dataset: Text = ""
    ) -> Answer[Page[JobView]]:
        """The jobs, newest first."""

        def wanted(job: Job) -> bool:
            return (
                (not status or status_of_job(job) == status)
                and (not name or job.spec.name == name)
                and (not dataset or job.spec.dataset == dataset)
            )

        found = self._page(limit, after, wanted)
        return Answer(Page(items=self.views(found.items), next=found.next))

    async def create_job(self, request: Request, spec: NewJob, key: Key = "", paused: bool = False) -> Answer[JobView]:
        """Ask for training. `model`, `strategy` and other choices may be written short: `fedadam:server_lr=0.1`.

        With an `Idempotency-Key`, sending the same request again gives the same job.
        """
        job = await self.submit(request, spec, key=key, paused=paused)
        return Answer(job, 201, {"location": f"/api/v1/jobs/{job.id}"})

    async def check_job(self, spec: NewJob) -> Answer[CheckView]:
        """Whether a job could be run as written, without asking for it; a problem says what is wrong with it."""
        data = self._coordinator.check(spec)
        return Answer(check_view(spec, data, self._coordinator.offers()))

    async def submit(self, request: Request, spec: JobSpec, *, key: str = "", paused: bool = False) -> JobView:
        """Raises Forbidden if somebody else's tokens are to pay for it."""
        if spec.rewards is not None:
            self._desk.check_spends(spec.rewards.sponsor, person(request))
        return self.view(await self._coordinator.submit(spec, by=caller(request), paused=paused, key=key))

    async def forecast_job(self, spec: NewJob) -> Answer[Forecast]:
        """What the job would take if it were submitted now: time, bytes, memory, energy. Nothing is started."""
        return Answer(await self._forecaster.forecast(spec))

    async def show_usage(self, job: str) -> Answer[Usage]:
        """What the job took so far, in the terms of its forecast."""
        return Answer(usage(self._coordinator.job(job)))

    async def show_job(self, job: str) -> Answer[JobView]:
        return Answer(self.view(self._coordinator.job(job)))

    async def show_manifest(self, job: str) -> Answer[Manifest]:
        """What it takes to make the job's model again: specification, seed, data digests, versions."""
        return Answer(await self._coordinator.manifest(job))

    async def pause_job(self, request: Request, job: str) -> Answer[JobView]:
        """Let the open round run to its end, and open no further one."""
        return Answer(self.view(await self._coordinator.pause(job, by=caller(request))))

    async def resume_job(self, request: Request, job: str) -> Answer[JobView]:
        return Answer(self.view(await self._coordinator.resume(job, by=caller(request))))

    async def stop_job(
        self, request: Request, job: str, asked: Annotated[StopRequest, Depends(Body(StopRequest))]
    ) -> Answer[JobView]:
        """End the job for good; its latest model stays."""
        return Answer(await self.stop(request, job, asked.reason))

    async def stop(self, request: Request, job: str, reason: str) -> JobView:
        return self.view(await self._coordinator.stop_job(job, reason, by=caller(request)))

    async def list_rounds(
        self,
        job: str,
        limit: Limit = 100,
        after: After = "",
        status: Literal["", "open", "closed", "failed"] = "",
    ) -> Answer[Page[RoundView]]:
        """Every attempt at every round, the open one last."""
        rounds = round_views(self._coordinator.job(job))
        return Answer(page([r for r in rounds if not status or r.status == status], limit, after))

    async def _attempts(self, job: Job, rounds: Container[int]) -> list[RoundSummary]:
        return await attempts_of(self._coordinator.journal, self._coordinator.blobs, job, rounds)

    async def show_round(self, job: str, round: int) -> Answer[WhyView]:
        """Who took part in a round, who did not and why, and what each contributed."""
        found = self._coordinator.job(job)
        why = why_view(found, round, await self._attempts(found, (round,)))
        if why is None:
            raise NotFound(f"job {job} has no round {round}: {found.rounds_done} of {found.spec.rounds} are done")
        return Answer(why)

    async def show_evaluation(
        self, job: str, round: Annotated[int | None, Query(ge=0)] = None
    ) -> Answer[EvaluationView]:
        """What every node measured of a model, and how evenly it serves them; by default the newest measured."""
        found = self._coordinator.job(job)
        wanted = max(found.evaluations, default=0) if round is None else round
        attempts = await self._attempts(found, (wanted, wanted + 1))
        return Answer(job_evaluation(found, wanted, attempts))

    async def list_metrics(self, job: str, limit: Limit = 1000, after: After = "") -> Answer[Page[MetricPoint]]:
        """The history of training and evaluation, one point a model."""
        return Answer(page(metric_points(self._coordinator.job(job)), limit, after))

    async def list_job_models(self, job: str, limit: Limit = 100, after: After = "") -> Answer[Page[ModelView]]:
        """The job's models with their lineage, the initial one first."""
        found = self._coordinator.job(job)
        rounds = page(rounds_with_model(found), limit, after)
        return Answer(Page(items=await self._models(found, rounds.items), next=rounds.next))

    async def list_models(self, limit: Limit = 100, after: After = "", dataset: Text = "") -> Answer[Page[ModelView]]:
        """The current model of every job, the newest job first."""

        def wanted(job: Job) -> bool:
            return bool(job.initial_model) and (not dataset or job.spec.dataset == dataset)

        found = self._page(limit, after, wanted)
        models = [model for job in found.items for model in await self._models(job, rounds_with_model(job)[-1:])]
        return Answer(Page(items=models, next=found.next))

    async def _models(self, job: Job, rounds: Sequence[int]) -> list[ModelView]:
        return model_views(job, rounds, await self._attempts(job, rounds))

    async def download_model(self, job: str, round: Annotated[int | None, Query(ge=0)] = None) -> Response:
        """The job's current model, or the one that a round made, as a safetensors file that says what it is."""
        return await model_response(self._coordinator.job(job), round, self._coordinator.blobs)

    async def list_contributions(
        self, limit: Limit = 100, after: After = "", job: Text = "", node: Text = ""
    ) -> Answer[Page[ContributionView]]:
        """Who trained what, when, and how much of it counted."""
        chosen = [self._coordinator.job(job)] if job else list(self._coordinator.jobs.values())
        given = [part for each in chosen for part in contribution_views(each) if not node or part.node == node]
        return Answer(page(given, limit, after))


def caller(request: Request) -> str:
    """Who asked, for the log."""
    identity: Identity | None = request.state.identity
    who = identity.name if identity else "somebody"
    return f"{who} at {request.client.host}" if request.client else who


def person(request: Request) -> Who:
    """Who asked, for what costs tokens."""
    identity: Identity | None = request.state.identity
    return Who(name=identity.name, admin=allows(identity.role, "admin")) if identity else Who(name="somebody")


def order_key(request: Request, chosen: str) -> str:
    """The ledger's key of an order that somebody has given a key."""
    return key_of(person(request).name, chosen)


def add_routes(api: Api, jobs: JobRoutes) -> None:
    root = "/api/v1/jobs"
    api.add("GET", root, jobs.list_jobs, "jobs")
    api.add("POST", root, jobs.create_job, "jobs", 201)
    api.add("POST", root + "/check", jobs.check_job, "jobs")
    api.add("POST", root + "/forecast", jobs.forecast_job, "jobs")
    api.add("GET", root + "/{job}", jobs.show_job, "jobs")
    api.add("GET", root + "/{job}/manifest", jobs.show_manifest, "jobs")
    api.add("GET", root + "/{job}/usage", jobs.show_usage, "jobs")
    api.add("POST", root + "/{job}/pause", jobs.pause_job, "jobs")
    api.add("POST", root + "/{job}/resume", jobs.resume_job, "jobs")
    api.add("POST", root + "/{job}/stop", jobs.stop_job, "jobs")
    api.add("GET", root + "/{job}/rounds", jobs.list_rounds, "rounds")
    api.add("GET", root + "/{job}/rounds/{round}", jobs.show_round, "rounds")
    api.add("GET", root + "/{job}/evaluation", jobs.show_evaluation, "rounds")
    api.add("GET", root + "/{job}/metrics", jobs.list_metrics, "rounds")
    api.add("GET", root + "/{job}/models", jobs.list_job_models, "models")
    api.add("GET", root + "/{job}/model", jobs.download_model, "models")
    api.add("GET", "/api/v1/models", jobs.list_models, "models")
    api.add("GET", "/api/v1/contributions", jobs.list_contributions, "nodes")
