"""What Prometheus is told of the job service: how many jobs are in which state, how long the queue waits, and the requests."""

import time
from collections.abc import Iterator
from datetime import UTC, datetime

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from scenemill.pipelines.jobs.store import JobStore
from scenemill.schemas.jobs import KINDS, QUEUED, STATES


class JobMetrics:
    """The figures of one service.

    Args:
        store: the table of jobs, counted anew for each answer.
        slots: how many jobs run at once.
    """

    def __init__(self, store: JobStore, slots: int) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_Jobs(store, slots))
        self._requests = Counter(
            "scenemill_jobs_requests",
            "Requests answered, refused ones too.",
            ("method", "route", "status"),
            registry=self._registry,
        )
        self._seconds = Histogram(
            "scenemill_jobs_request_seconds", "Time to answer; that of logs includes waiting.", ("route",), registry=self._registry
        )

    def text(self) -> bytes:
        """All figures in Prometheus' text format."""
        return generate_latest(self._registry)

    def watch(self, app: ASGIApp) -> ASGIApp:
        """An application whose requests are counted."""

        async def watched(scope: Scope, receive: Receive, send: Send) -> None:
            began, status = time.perf_counter(), [0]

            async def send_noting(message: Message) -> None:
                if message["type"] == "http.response.start":
                    status[0] = message["status"]
                await send(message)

            try:
                await app(scope, receive, send_noting)
            finally:
                self._count(scope, status[0], time.perf_counter() - began)

        return watched

    def _count(self, scope: Scope, status: int, seconds: float) -> None:
        """By the route's pattern and the methods there are: what clients make up must not become labels without end."""
        route = getattr(scope.get("route"), "path", "")
        method = scope.get("method", "") if scope.get("method") in ("GET", "POST") else "other"
        self._requests.labels(method, route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)


class _Jobs(Collector):
    def __init__(self, store: JobStore, slots: int) -> None:
        self._store, self._slots = store, slots

    def collect(self) -> Iterator[Metric]:
        """The jobs as they are now."""
        jobs, counts = GaugeMetricFamily("scenemill_jobs", "Jobs.", labels=("kind", "state")), self._store.count()
        for kind in KINDS:
            for state in STATES:
                jobs.add_metric((kind, state), counts.get((kind, state), 0))
        yield jobs
        yield GaugeMetricFamily("scenemill_jobs_slots", "Jobs that may run at once.", value=self._slots)
        yield GaugeMetricFamily(
            "scenemill_jobs_oldest_queued_seconds", "Age of the oldest job in the queue.", value=self._waiting_s()
        )

    def _waiting_s(self) -> float:
        queued = self._store.find((QUEUED,), limit=1, newest=False)
        waits = (datetime.now(UTC) - datetime.fromisoformat(queued[0].created)).total_seconds() if queued else 0.0
        return max(0.0, waits)  # a clock that was set back has jobs of time to come
