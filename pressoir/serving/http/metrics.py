"""The metrics that Prometheus reads at `/metrics`, counted as the service and the server report them.

Each server counts in a registry of its own, so that several in one process do not add up. Labels are tiers,
models and routes, all of which the configuration or the program names: no client can make new ones.

Sources. https://prometheus.io/docs/practices/naming/
"""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from pressoir.serving.pool.pool_entry import Event
from pressoir.serving.service import Service

_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0)
_TEXTS = (1, 2, 4, 8, 16, 32, 64, 128)
_METHODS = {"GET", "POST", "HEAD", "OPTIONS", "PUT", "DELETE", "PATCH"}


class Metrics:
    """Counters of one server; a `pressoir.serving.pool.observer.Observer`."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self._requests = Counter(
            "pressoir_requests",
            "Number of requests to tiers, by outcome (ok, cancelled or an error).",
            ("tier", "operation", "outcome"),
            registry=registry,
        )
        self._latency = Histogram(
            "pressoir_request_seconds",
            "Duration of successful requests: service (queueing, loading and computing) and http (total).",
            ("tier", "stage"),
            buckets=_SECONDS,
            registry=registry,
        )
        self._batch_latency = Histogram(
            "pressoir_batch_seconds",
            "Duration of batches: queue (wait of the oldest request) and run.",
            ("model", "stage"),
            buckets=_SECONDS,
            registry=registry,
        )
        self._batch_texts = Histogram(
            "pressoir_batch_texts",
            "Number of texts per batch.",
            ("model",),
            buckets=_TEXTS,
            registry=registry,
        )
        self._events = Counter(
            "pressoir_model_events",
            "Model events: loaded, evicted, unloaded, replaced, died, failed, stuck.",
            ("model", "event"),
            registry=registry,
        )
        self._answers = Counter(
            "pressoir_http_requests",
            "Number of HTTP responses.",
            ("method", "route", "status"),
            registry=registry,
        )

        self._ready = Gauge(
            "pressoir_ready", "Whether every tier would answer, as /health/ready says.", registry=registry
        )

    def watch(self, service: Service) -> None:
        """Tell of the models of a service, too, as they are when somebody asks."""
        self.registry.register(_Models(service))

    def request(self, tier: str, operation: str, outcome: str, seconds: float) -> None:
        """See `Observer.request`."""
        self._requests.labels(tier, operation, outcome).inc()
        if outcome == "ok":
            self._latency.labels(tier, "service").observe(seconds)

    def batch(self, model: str, texts: int, waited_s: float, run_s: float) -> None:
        """See `Observer.batch`."""
        self._batch_texts.labels(model).observe(texts)
        self._batch_latency.labels(model, "queue").observe(waited_s)
        self._batch_latency.labels(model, "run").observe(run_s)

    def event(self, event: Event, model: str) -> None:
        """See `Observer.event`."""
        self._events.labels(model, event).inc()

    def answer(self, method: str, route: str, status: int, tier: str | None, seconds: float) -> None:
        """A request over HTTP was answered, or given up (status 499)."""
        self._answers.labels(method if method in _METHODS else "other", route, status).inc()
        if tier is not None and status == 200:
            self._latency.labels(tier, "http").observe(seconds)

    def ready(self, ready: bool) -> None:
        """The server would answer for every tier, or not, from now on."""
        self._ready.set(ready)

    def text(self) -> bytes:
        """In Prometheus' text format."""
        return generate_latest(self.registry)


class _Models(Collector):
    """The loaded models of a service."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def collect(self) -> Iterator[Metric]:
        models = self._service.models
        budget = GaugeMetricFamily(
            "pressoir_memory_budget_bytes", "Memory budget of models; absent if there is no limit."
        )
        if models.pool.budget_bytes is not None:
            budget.add_metric((), models.pool.budget_bytes)
        yield budget
        gauges = models.gauges()
        for name, key, what in (
            ("pressoir_model_resident_bytes", "resident_bytes", "Memory used by a model (PSS)."),
            ("pressoir_model_leases", "leases", "Number of requests currently using a model."),
            ("pressoir_model_queue_length", "waiting", "Number of requests waiting for a model."),
        ):
            family = GaugeMetricFamily(name, what, labels=("model",))
            for model, values in gauges.items():
                family.add_metric((model,), values[key])
            yield family
