"""The coordinator as a whole: is it well, what is going on, what can it do, and what has happened."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, Any

import msgspec
from fastapi import Depends, Query, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from tutti.apps.api.identify import Identify
from tutti.apps.api.jobs import Text, caller
from tutti.apps.api.prometheus import COUNTED_BEHIND, Exposition, events_behind
from tutti.apps.api.schema import Answer, Api, Body, Limit
from tutti.apps.api.settings import ApiSettings
from tutti.core.errors import NotFound, StorageError
from tutti.core.registry import Registry, describe
from tutti.domain.spec import CohortRules, Evaluation, Training
from tutti.services.coordinator import Coordinator
from tutti.services.views import (
    Configuration,
    EventView,
    Health,
    MetricsView,
    Page,
    StatusView,
    event_view,
    metrics_view,
    status_view,
)
from tutti.version import __version__

Names = dict[str, dict[str, Any]]
"""Names of a registry, each with the JSON schema of its options."""


LOOKED_THROUGH = 20
"""Batches of a thousand events that one request by type looks through."""


class MaintenanceRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    reason: Annotated[str, msgspec.Meta(min_length=1, max_length=200)] = "asked"


class StatusRoutes:
    def __init__(
        self,
        coordinator: Coordinator,
        settings: ApiSettings,
        identify: Identify,
        registries: Mapping[str, Registry[Any]],
        exposition: Exposition,
    ) -> None:
        self._coordinator, self._settings, self._registries = coordinator, settings, registries
        self._identify = identify
        self._described: dict[str, Names] = {}
        self._exposition = exposition

    async def health(self) -> Answer[Health]:
        return Answer(Health(status="healthy", timestamp=datetime.now(UTC).isoformat()))

    async def ready(self) -> Answer[Health]:
        """Whether work can be given to this coordinator: 200 if so, 507 while its event log does not answer."""
        behind = await events_behind(self._coordinator)
        if self._coordinator.background.failed.done():
            raise StorageError("a part of this coordinator died: it is ending")
        if behind >= COUNTED_BEHIND:
            raise StorageError(f"this coordinator is {behind} events or more behind its log")
        return Answer(Health(status="ready", timestamp=datetime.now(UTC).isoformat()))

    async def status(self) -> Answer[StatusView]:
        it = self._coordinator
        return Answer(
            status_view(
                it.jobs.values(),
                it.node_statuses(),
                it.register,
                version=__version__,
                now=it.clock(),
                offset=it.journal.offset,
            )
        )

    async def begin_maintenance(
        self, request: Request, wish: Annotated[MaintenanceRequest, Depends(Body(MaintenanceRequest))]
    ) -> Answer[StatusView]:
        """Let nothing new begin: open rounds run to their end, jobs are paused, new ones are refused."""
        await self._coordinator.maintenance.begin(wish.reason, by=caller(request))
        return await self.status()

    async def end_maintenance(self, request: Request) -> Answer[StatusView]:
        """Go on with all that was paused for it."""
        await self._coordinator.maintenance.end(by=caller(request))
        return await self.status()

    async def metrics(self) -> Answer[MetricsView]:
        it = self._coordinator
        return Answer(metrics_view(it.jobs.values(), it.node_statuses(), it.stats))

    async def exposition(self) -> Response:
        """Metrics for Prometheus."""
        return Response(await self._exposition.text(), media_type=self._exposition.media_type)

    async def configuration(self) -> Answer[Configuration]:
        return Answer(
            Configuration(
                host=self._settings.host,
                port=self._settings.port,
                authentication=self._identify.needed,
                training=Training(),
                cohort=CohortRules(),
                evaluation=Evaluation(),
            )
        )

    async def registry(self) -> Answer[dict[str, Names]]:
        """What jobs and nodes can name, with the options of each."""
        return Answer({kind: await self._names(kind) for kind in self._registries})

    async def registry_of(self, kind: str) -> Answer[Names]:
        if kind not in self._registries:
            raise NotFound(f"there is no registry {kind!r}; choose from: {', '.join(self._registries)}")
        return Answer(await self._names(kind))

    async def _names(self, kind: str) -> Names:
        if kind not in self._described:  # the first look imports every module of the registry
            found = await run_in_threadpool(describe, self._registries[kind])
            self._described[kind] = msgspec.convert(found, Names)
        return self._described[kind]

    async def events(
        self,
        limit: Limit = 100,
        after: Annotated[int, Query(ge=0)] = 0,
        stream: Text = "",
        kinds: Annotated[list[Text] | None, Query(alias="type", max_length=20)] = None,
    ) -> Answer[Page[EventView]]:
        """What has happened, in order. Streams: `nodes`, and `job:<id>` for each job.

        `type`, which may be given several times, keeps events such as `UpdateRefused` only. At most 20,000 events are
        looked through at once: then a page is short although it has a `next`.
        """
        if kinds:
            return Answer(await self._events_of(frozenset(kinds), limit, after, stream or None))
        found = await self._coordinator.log.read(after, stream=stream or None, limit=limit)
        more = str(found[-1].offset) if len(found) == limit else None
        return Answer(Page(items=[event_view(recorded) for recorded in found], next=more))

    async def _events_of(self, kinds: frozenset[str], limit: int, after: int, stream: str | None) -> Page[EventView]:
        kept: list[EventView] = []
        for _ in range(LOOKED_THROUGH):
            batch = await self._coordinator.log.read(after, stream=stream)
            for recorded in batch:
                after = recorded.offset
                if type(recorded.event).__name__ in kinds:
                    kept.append(event_view(recorded))
                    if len(kept) == limit:
                        return Page(items=kept, next=str(after))
            if not batch:
                return Page(items=kept)
        return Page(items=kept, next=str(after))


def add_routes(api: Api, status: StatusRoutes) -> None:
    api.add("GET", "/health", status.health, "coordinator")
    api.add("GET", "/ready", status.ready, "coordinator")
    api.add("GET", "/metrics", status.exposition, "coordinator")
    api.add("GET", "/api/v1/status", status.status, "coordinator")
    api.add("PUT", "/api/v1/maintenance", status.begin_maintenance, "coordinator")
    api.add("DELETE", "/api/v1/maintenance", status.end_maintenance, "coordinator")
    api.add("GET", "/api/v1/metrics", status.metrics, "coordinator")
    api.add("GET", "/api/v1/config", status.configuration, "coordinator")
    api.add("GET", "/api/v1/registry", status.registry, "coordinator")
    api.add("GET", "/api/v1/registry/{kind}", status.registry_of, "coordinator")
    api.add("GET", "/api/v1/events", status.events, "coordinator")
