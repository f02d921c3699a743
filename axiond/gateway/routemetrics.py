"""What Prometheus is told about routes."""

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.metrics import MetricWrapperBase

from axiond.gateway.exchange import CLIENT_GONE, Exchange
from axiond.gateway.shadow import Shadow
from axiond.routing.table import RouteTable

_DECISION_S = (0.00001, 0.000025, 0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.05, 0.25)
_SHADOW_S = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


class RouteMetrics:
    """
    Count what routes do.

    The labels `route` and `model` hold only names of the table in force ("" where no route decided, or no model was
    chosen); the series of those that are gone go with them.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._known: set[tuple[MetricWrapperBase, tuple[str, ...]]] = set()
        self._requests = Counter(
            "axiond_route_requests",
            "Requests that rules decided about: answered, rejected (4xx), failed (5xx), refused by the rule, or left by their client.",
            ["route", "model", "outcome"],
            registry=registry,
        )
        self._decisions = Histogram(
            "axiond_route_decision_seconds",
            "From reading a request to the decision, by what it took: rules alone, keywords of domains, or an embedding.",
            ["stage"],
            buckets=_DECISION_S,
            registry=registry,
        )
        self._fallbacks = Counter(
            "axiond_route_fallbacks", "Models that another one answered for, by the reason.", ["route", "reason"], registry=registry
        )
        self._shadows = Counter(
            "axiond_route_shadow_requests",
            "Copies of requests: answered, failed, or dropped for want of room.",
            ["route", "model", "outcome"],
            registry=registry,
        )
        self._shadow_s = Histogram(
            "axiond_route_shadow_duration_seconds", "Whole copies.", ["route", "model"], buckets=_SHADOW_S, registry=registry
        )
        self._shadow_tokens = Counter(
            "axiond_route_shadow_tokens", "Tokens of copies.", ["route", "model", "kind"], registry=registry
        )  # fmt: skip

    def request_ended(self, exchange: Exchange) -> None:
        """Count a request that rules decided about, or that went past a model."""
        self._series(self._requests, exchange.route, exchange.model, _outcome(exchange)).inc()
        if exchange.decided_in_s is not None:
            verdict = exchange.decision.verdict if exchange.decision else None
            self._decisions.labels(verdict.stage if verdict and verdict.stage != "none" else "rules").observe(exchange.decided_in_s)
        for reason in exchange.passed.values():
            self._series(self._fallbacks, exchange.route, reason).inc()

    def shadow_ended(self, shadow: Shadow) -> None:
        """Count a copy."""
        self._series(self._shadows, shadow.route, shadow.model, shadow.outcome).inc()
        if shadow.took_s is not None:
            self._series(self._shadow_s, shadow.route, shadow.model).observe(shadow.took_s)
        for kind, tokens in (("prompt", shadow.prompt_tokens), ("completion", shadow.completion_tokens)):
            if tokens:
                self._series(self._shadow_tokens, shadow.route, shadow.model, kind).inc(tokens)

    def requests_by_route(self) -> dict[str, int]:
        """How many requests each route has decided about; "" counts those that went by their name. Routes without any are left out."""
        counts: dict[str, int] = {}
        for sample in (sample for metric in self._requests.collect() for sample in metric.samples if sample.name.endswith("_total")):
            counts[sample.labels["route"]] = counts.get(sample.labels["route"], 0) + int(sample.value)
        return counts

    def forget(self, table: RouteTable) -> None:
        """Drop the series of routes and models that are gone."""
        routes, models = {*table.routes, ""}, {*table.pools, ""}
        for found in [*self._known]:
            metric, labels = found
            if labels[0] not in routes or (metric is not self._fallbacks and labels[1] not in models):
                metric.remove(*labels)
                self._known.discard(found)

    def _series(self, metric: MetricWrapperBase, *labels: str):  # type: ignore[no-untyped-def]
        self._known.add((metric, labels))
        return metric.labels(*labels)


def _outcome(exchange: Exchange) -> str:
    if exchange.decision and exchange.decision.refusal:
        return "refused"
    if exchange.status == CLIENT_GONE and not exchange.lost:
        return "left"
    if exchange.lost or exchange.status >= 500:
        return "failed"
    return "rejected" if exchange.status >= 400 else "answered"
