"""What Prometheus is told."""

from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, disable_created_metrics, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from axiond.gateway.exchange import Exchange
from axiond.gateway.routemetrics import RouteMetrics
from axiond.gateway.shadow import Shadow
from axiond.report import Status
from axiond.routing.router import Router
from axiond.semantic.classify import Classifier

_FIRST_TOKEN_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_EACH_TOKEN_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.4, 0.8, 2)
_REQUEST_S = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
_WAIT_S = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_RELOAD_S = (0.01, 0.1, 1, 5, 10, 30, 60, 120, 300, 600, 1800)

disable_created_metrics()  # type: ignore[no-untyped-call]  # they would double the output


class Metrics:
    """
    Count requests, reloads and what is going on now.

    The label `model` holds only names of the table in force ("" for a request without a known model); the series of a
    removed model go with it.
    """

    def __init__(self, router: Router, status: Callable[[], Status] | None = None, classifier: Classifier | None = None) -> None:
        self._router = router
        self._models: dict[str, _ModelSeries] = {}
        self.registry = registry = CollectorRegistry()
        self._requests = Counter(
            "axiond_requests", "Requests by HTTP code; 499 is a client that left.", ["model", "code"], registry=registry
        )
        self._lost = Counter("axiond_requests_lost", "Requests that died through no fault of the client.", ["reason"], registry=registry)
        self._retries = Counter(
            "axiond_request_retries", "Attempts that failed before another engine was tried.", ["model"], registry=registry
        )
        self._prompt = Counter("axiond_prompt_tokens", "Prompt tokens, where the answer names them.", ["model"], registry=registry)
        self._completion = Counter(
            "axiond_completion_tokens",
            "Tokens generated: as the answer's usage says, or else the stream's chunks.",
            ["model", "counted_by"],
            registry=registry,
        )
        self._duration = Histogram("axiond_request_seconds", "Whole requests.", ["model"], buckets=_REQUEST_S, registry=registry)
        self._first = Histogram(
            "axiond_time_to_first_token_seconds",
            "From request to first event of a stream.",
            ["model"],
            buckets=_FIRST_TOKEN_S,
            registry=registry,
        )
        self._each = Histogram(
            "axiond_time_per_output_token_seconds", "Between tokens after the first.", ["model"], buckets=_EACH_TOKEN_S, registry=registry
        )
        self._waits = Histogram(
            "axiond_queue_wait_seconds", "Requests that had to queue, however that ended.", ["model"], buckets=_WAIT_S, registry=registry
        )
        self._rejected = Counter("axiond_queue_rejected", "Requests that got no turn.", ["model", "reason"], registry=registry)
        self._reloads = Counter("axiond_reloads", "Manifest changes by how they ended.", ["outcome"], registry=registry)
        self._reload_s = Histogram("axiond_reload_seconds", "From reading a manifest to its end.", buckets=_RELOAD_S, registry=registry)
        self._routes = RouteMetrics(registry)
        registry.register(_Now(router, status, classifier))
        ProcessCollector(registry=registry)

    def request_ended(self, exchange: Exchange, now: float) -> None:
        """Count one request."""
        series = self._models.get(exchange.model)
        if series is None:
            series = self._models[exchange.model] = _ModelSeries(self, exchange.model)
        series.count(exchange, now)
        if exchange.lost:
            self._lost.labels(exchange.lost).inc()
        if exchange.is_routed:
            self._routes.request_ended(exchange)

    def requests_by_route(self) -> dict[str, int]:
        """How many requests each route has decided about."""
        return self._routes.requests_by_route()

    def shadow_ended(self, shadow: Shadow) -> None:
        """Count one copy of a request."""
        self._routes.shadow_ended(shadow)

    def reload_ended(self, outcome: str, took_s: float) -> None:
        """Count one manifest change: realised, degraded, rejected, rolled_back or superseded."""
        self._reloads.labels(outcome).inc()
        self._reload_s.observe(took_s)

    def render(self) -> bytes:
        """The text that Prometheus scrapes."""
        for model in self._models.keys() - self._router.table.pools.keys() - {""}:
            self._models.pop(model).remove()
        self._routes.forget(self._router.table)
        return generate_latest(self.registry)


class _ModelSeries:
    """One model's series, looked up once."""

    def __init__(self, metrics: Metrics, model: str) -> None:
        self._metrics, self._model = metrics, model
        self._codes: dict[int, Counter] = {}
        self._reasons: set[str] = set()
        self._retries, self._prompt = metrics._retries.labels(model), metrics._prompt.labels(model)
        self._by_usage = metrics._completion.labels(model, "usage")
        self._by_chunks = metrics._completion.labels(model, "chunks")
        self._duration, self._first, self._each, self._waits = (
            histogram.labels(model) for histogram in (metrics._duration, metrics._first, metrics._each, metrics._waits)
        )

    def count(self, exchange: Exchange, now: float) -> None:
        code = self._codes.get(exchange.status)
        if code is None:
            code = self._codes[exchange.status] = self._metrics._requests.labels(self._model, str(exchange.status))
        code.inc()
        self._duration.observe(now - exchange.began_at)
        if exchange.waited_s is not None:
            self._waits.observe(exchange.waited_s)
        if exchange.rejected:
            self._reasons.add(exchange.rejected)
            self._metrics._rejected.labels(self._model, exchange.rejected).inc()
        if exchange.attempts > 1:
            self._retries.inc(exchange.attempts - 1)
        if exchange.status < 400 and exchange.sent_bytes:
            self._count_tokens(exchange)

    def _count_tokens(self, exchange: Exchange) -> None:
        prompt, completion = exchange.tokens()
        if prompt:
            self._prompt.inc(prompt)
        tokens = exchange.events if completion is None else completion
        if tokens:
            (self._by_chunks if completion is None else self._by_usage).inc(tokens)
        if exchange.ttft_s is not None:
            self._first.observe(exchange.ttft_s)
            if tokens > 1:
                self._each.observe((exchange.last_byte_at - exchange.first_byte_at) / (tokens - 1))

    def remove(self) -> None:
        metrics, model = self._metrics, self._model
        for code in self._codes:
            metrics._requests.remove(model, str(code))
        for reason in self._reasons:
            metrics._rejected.remove(model, reason)
        for counter in (metrics._retries, metrics._prompt, metrics._duration, metrics._first, metrics._each, metrics._waits):
            counter.remove(model)
        for counted_by in ("usage", "chunks"):
            metrics._completion.remove(model, counted_by)


class _Now(Collector):
    """Gauges that are read when somebody looks."""

    def __init__(self, router: Router, status: Callable[[], Status] | None, classifier: Classifier | None) -> None:
        self._router, self._status, self._classifier = router, status, classifier

    def collect(self) -> Iterator[Metric]:
        table = self._router.table
        queued = GaugeMetricFamily("axiond_queue_depth", "Requests that wait for an engine.", labels=["model"])
        endpoints = GaugeMetricFamily("axiond_endpoints", "Engines that take a model's requests.", labels=["model"])
        in_flight = GaugeMetricFamily("axiond_in_flight", "Requests inside an engine.", labels=["engine"])
        estimate = GaugeMetricFamily(
            "axiond_queue_estimate_seconds", "How long a request that came now would wait, where that is known.", labels=["model"]
        )
        for model, pool in table.pools.items():
            if (outlook_s := self._router.outlook_s(model)) is not None:
                estimate.add_metric([model], outlook_s)
            queued.add_metric([model], self._router.queued(model))
            endpoints.add_metric([model], len(pool.endpoints))
            for endpoint in pool.endpoints:
                in_flight.add_metric([str(endpoint.key)], self._router.in_flight(endpoint.key))
        yield from (queued, estimate, endpoints, in_flight)
        yield GaugeMetricFamily("axiond_generation", "The generation served.", value=table.generation)
        yield from self._engines()
        yield from self._residence()
        if self._classifier:
            hits, misses, without = self._classifier.hits, self._classifier.misses, self._classifier.without
            yield CounterMetricFamily("axiond_embedding_cache_hits", "Prompts whose embedding was remembered.", value=hits)
            yield CounterMetricFamily("axiond_embedding_cache_misses", "Prompts whose embedding was not remembered.", value=misses)
            yield CounterMetricFamily(
                "axiond_embedding_failures",
                "Prompts told by keywords alone because their embedding took too long, or the model failed.",
                value=without,
            )

    def _residence(self) -> Iterator[Metric]:
        loads = CounterMetricFamily("axiond_model_loads", "Engines started for a model.", labels=["model"])
        unloads = CounterMetricFamily(
            "axiond_model_unloads",
            "Engines of a model ended: for a change, idle, for another model's room, recycled.",
            labels=["model", "cause"],
        )
        for model in self._status().models if self._status else ():
            loads.add_metric([model.name], model.loads)
            for cause, count in model.unloads.items():
                unloads.add_metric([model.name, cause], count)
        yield from (loads, unloads)

    def _engines(self) -> Iterator[Metric]:
        state = GaugeMetricFamily("axiond_engine_state", "1 for the state an engine is in.", labels=["engine", "model", "state"])
        memory = GaugeMetricFamily("axiond_engine_memory_bytes", "Memory of an engine's processes.", labels=["engine", "model"])
        for engine in self._status().engines if self._status else ():
            state.add_metric([engine.key, engine.model, engine.state], 1)
            memory.add_metric([engine.key, engine.model], engine.memory_bytes)
        yield from (state, memory)
