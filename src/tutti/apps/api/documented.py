"""The documented calls of two other systems, on the same services: aliases, without any logic of their own.

The first documents federated training with a dashboard, the second a fleet of devices. Calls of theirs that
are canonical here anyway (`/health`, `/metrics`, `/ws`, `/api/v1/status`, `/api/v1/nodes`, …) need no alias.
"""

from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import Depends, Request

from tutti.apps.api.jobs import JobRoutes
from tutti.apps.api.nodes import Joined, JoinRequest, NodeRoutes
from tutti.apps.api.schema import Answer, Api, Body
from tutti.apps.api.status import StatusRoutes
from tutti.apps.api.wishes import StopWish, TrainingWish, read_job, read_join
from tutti.core.registry import Registry
from tutti.services.coordinator import Coordinator
from tutti.services.views import JobView, View

TRAINING = "documented: federated training"
FLEET = "documented: device fleet"

Wish = Annotated[dict[str, Any], Depends(Body[dict[str, Any]](TrainingWish, lambda plain: plain))]


class Started(View, frozen=True, kw_only=True):
    """The job that was made. `ignored` names the fields of the request that mean nothing here."""

    id: str
    session_id: str
    status: str
    ignored: list[str]
    job: JobView


class Stopped(View, frozen=True, kw_only=True):
    stopped: list[JobView]


class TrainingStatus(View, frozen=True, kw_only=True):
    """`session` is the newest."""

    running: bool
    session: JobView | None


class DocumentedRoutes:
    def __init__(
        self,
        coordinator: Coordinator,
        jobs: JobRoutes,
        nodes: NodeRoutes,
        registries: Mapping[str, Registry[Any]],
    ) -> None:
        self._coordinator, self._jobs, self._nodes, self._registries = coordinator, jobs, nodes, registries

    async def start_training(self, request: Request, wish: Wish) -> Answer[Started]:
        """Train. Everything has a default: the data set that most nodes hold, a small network, ten rounds."""
        return await self._start(request, wish, paused=False)

    async def create_job(self, request: Request, wish: Wish) -> Answer[Started]:
        """Make a job that waits for `/start`."""
        return await self._start(request, wish, paused=True)

    async def _start(self, request: Request, wish: dict[str, Any], *, paused: bool) -> Answer[Started]:
        spec, ignored = read_job(wish, self._coordinator.node_statuses(), self._registries)
        job = await self._jobs.submit(request, spec, paused=paused)
        started = Started(id=job.id, session_id=job.id, status=job.status, ignored=ignored, job=job)
        return Answer(started, 201, {"location": f"/api/v1/jobs/{job.id}"})

    async def stop_training(
        self, request: Request, wish: Annotated[StopWish, Depends(Body(StopWish))]
    ) -> Answer[Stopped]:
        """Stop one session, or all that are not over."""
        live = [job.id for job in self._coordinator.jobs.values() if not job.final]
        chosen = [wish.job] if wish.job else live
        return Answer(Stopped(stopped=[await self._jobs.stop(request, job, "asked") for job in chosen]))

    async def training_status(self) -> Answer[TrainingStatus]:
        jobs = list(self._coordinator.jobs.values())
        newest = self._jobs.view(jobs[-1]) if jobs else None
        return Answer(TrainingStatus(running=any(not job.final for job in jobs), session=newest))

    async def register_node(
        self, request: Request, wish: Annotated[JoinRequest, Depends(Body(JoinRequest, read_join))]
    ) -> Answer[Joined]:
        """Register a node by a join token. The operator needs none, and a nameless node gets a name."""
        return await self._nodes.join(request, wish)


def add_routes(api: Api, its: DocumentedRoutes, jobs: JobRoutes, nodes: NodeRoutes, status: StatusRoutes) -> None:
    api.add("POST", "/api/v1/training/start", its.start_training, TRAINING, 201)
    api.add("POST", "/api/v1/training/stop", its.stop_training, TRAINING)
    api.add("GET", "/api/v1/training/status", its.training_status, TRAINING)
    api.add("POST", "/api/v1/nodes/register", its.register_node, TRAINING, 201)
    api.add("GET", "/api/v1/sessions", jobs.list_jobs, TRAINING)
    api.add("GET", "/api/v1/sessions/{job}", jobs.show_job, TRAINING)
    api.add("GET", "/api/v1/sessions/{job}/rounds", jobs.list_rounds, TRAINING)
    api.add("GET", "/api/v1/sessions/{job}/metrics", jobs.list_metrics, TRAINING)

    api.add("GET", "/api/devices", nodes.list_nodes, FLEET)
    api.add("GET", "/api/devices/{node}", nodes.show_node, FLEET)
    api.add("GET", "/api/jobs", jobs.list_jobs, FLEET)
    api.add("POST", "/api/jobs", its.create_job, FLEET, 201)
    api.add("GET", "/api/jobs/{job}", jobs.show_job, FLEET)
    api.add("POST", "/api/jobs/{job}/start", jobs.resume_job, FLEET)
    api.add("POST", "/api/jobs/{job}/stop", jobs.stop_job, FLEET)
    api.add("GET", "/api/metrics", status.metrics, FLEET)
