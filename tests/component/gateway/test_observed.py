"""Keys, health, metrics and the access log."""

from typing import Any

import pytest
from structlog.testing import capture_logs

from axiond.gateway.metrics import Metrics
from axiond.manifest.spec import ModelSpec, Route, Weighted
from axiond.routing.router import Router
from axiond.semantic.classify import Classifier

from .conftest import Site, SiteMaker, chat

KEYS = frozenset({"key-one", "schlüssel"})


@pytest.mark.parametrize(
    ("headers", "status", "code"),
    [
        pytest.param({}, 401, "missing_api_key", id="none"),
        pytest.param({"Authorization": "Bearer nope"}, 401, "invalid_api_key", id="wrong"),
        pytest.param({"Authorization": "Bearer key-on"}, 401, "invalid_api_key", id="prefix"),
        pytest.param({"Authorization": "Basic key-one"}, 401, "missing_api_key", id="scheme"),
        pytest.param({"Authorization": "Bearer key-one"}, 200, None, id="bearer"),
        pytest.param({"x-api-key": "key-one"}, 200, None, id="x-api-key"),
        pytest.param({"Authorization": "Bearer schlüssel"}, 200, None, id="not-ascii"),
    ],
)
async def test_keys_are_demanded_once_there_are_any(site: Site, headers: dict[str, str], status: int, code: str | None) -> None:
    site.route(specs={"m": ModelSpec(source="/m")}, api_keys=KEYS)
    async with site.session.get("/v1/models", headers=headers) as answer:
        body = await answer.json()
    assert (answer.status, body.get("error", {}).get("code")) == (status, code)
    assert (answer.headers.get("WWW-Authenticate") == "Bearer") == (status == 401)


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/metrics"])
async def test_probes_and_scrapers_need_no_key(site: Site, path: str) -> None:
    site.route(await site.start_engine("m"), api_keys=KEYS)
    async with site.session.get(path) as answer:
        assert answer.status == 200


@pytest.mark.parametrize(
    ("specs", "pool", "ready"),
    [
        pytest.param(None, {}, "no manifest is served yet", id="nothing-served"),
        pytest.param({}, {}, "ready", id="no-models"),
        pytest.param({"m": ModelSpec(source="/m")}, {"reason": "of /secret", "is_coming": True}, "model m: starting", id="starting"),
        pytest.param({"m": ModelSpec(source="/m")}, {"reason": "no such file: /secret"}, "model m: unavailable", id="failed"),
        pytest.param({"m": ModelSpec(source="/m", load="lazy")}, {"is_lazy": True}, "ready", id="lazy"),
    ],
)
async def test_readyz_tells_whether_requests_would_be_answered(
    site: Site, specs: dict[str, ModelSpec] | None, pool: dict[str, Any], ready: str
) -> None:
    if specs is not None:
        site.route(specs=specs)
    if pool:
        site.change_pool("m", **pool)
    async with site.session.get("/readyz") as answer:
        assert (answer.status, await answer.text()) == (200 if ready == "ready" else 503, ready + "\n")


async def test_tokens_and_times_are_counted(site: Site) -> None:
    site.route(await site.start_engine("m", "--token-delay", "0.005"))
    for fields in (
        {"max_tokens": 7},
        {"max_tokens": 5, "stream": True, "stream_options": {"include_usage": True}},
        {"max_tokens": 3, "stream": True},
    ):
        async with site.session.post("/v1/completions", json={"model": "m", "prompt": "one two", **fields}) as answer:
            await answer.read()
    async with site.session.post("/v1/completions", json={"model": "unknown", "prompt": "x"}) as answer:
        assert answer.status == 404
    wanted = {
        ("axiond_requests_total", ("code", "200"), ("model", "m")): 3,
        ("axiond_requests_total", ("code", "404"), ("model", "")): 1,
        ("axiond_prompt_tokens_total", ("model", "m")): 4,
        ("axiond_completion_tokens_total", ("counted_by", "usage"), ("model", "m")): 12,
        ("axiond_completion_tokens_total", ("counted_by", "chunks"), ("model", "m")): 3,
        ("axiond_time_to_first_token_seconds_count", ("model", "m")): 2,
        ("axiond_time_per_output_token_seconds_count", ("model", "m")): 2,
        ("axiond_request_seconds_count", ("model", "m")): 3,
    }
    assert {key: await site.metric(key[0], **dict(key[1:])) for key in wanted} == wanted
    per_token = await site.metric("axiond_time_per_output_token_seconds_sum", model="m")
    assert per_token is not None
    assert 0.008 < per_token < 0.5


async def test_a_refusal_counts_for_the_model_it_was_meant_for(site: Site) -> None:
    route = Route(name="route", models=(Weighted(model="m"),))
    site.route(specs={"m": ModelSpec(source="/m", aliases=("alias",))}, routes=(route,), max_queue=0)
    pools: tuple[tuple[dict[str, Any], int], ...] = (({"reason": "out of memory"}, 503), ({"is_coming": True}, 429))
    for pool, status in pools:
        site.change_pool("m", **pool)
        for name in ("m", "alias", "route"):
            async with site.session.post("/v1/chat/completions", json=chat(name)) as answer:
                assert answer.status == status
        assert await site.metric("axiond_requests_total", model="m", code=str(status)) == 3


async def test_the_series_of_a_removed_model_go_with_it(site: Site) -> None:
    site.route(await site.start_engine("m"))
    async with site.session.post("/v1/completions", json={"model": "m", "prompt": "x"}) as answer:
        assert answer.status == 200
    async with site.session.get("/metrics") as answer:
        assert 'model="m"' in await answer.text()
    site.route(specs={"other": ModelSpec(source="/o")})
    async with site.session.get("/metrics") as answer:
        assert 'model="m"' not in await answer.text()


async def test_one_line_is_logged_for_each_request_without_prompt_or_key(open_site: SiteMaker) -> None:
    with capture_logs() as lines:
        site: Site = await open_site()
        site.route(await site.start_engine("m"), api_keys=KEYS)
        headers = {"Authorization": "Bearer key-one", "X-Request-ID": "given"}
        async with site.session.post("/v1/chat/completions", json=chat(stream=True), headers=headers) as answer:
            await answer.read()
        async with site.session.get("/healthz") as answer:
            assert answer.status == 200
    served, probe = lines
    assert served == {
        "event": "request.was_served", "log_level": "info", "request_id": "given", "method": "POST", "path": "/v1/chat/completions",
        "model": "m", "status": 200, "sent_bytes": served["sent_bytes"], "took_ms": served["took_ms"], "ttft_ms": served["ttft_ms"],
    }  # fmt: skip
    assert served["sent_bytes"] > 1000
    assert probe["log_level"] == "debug"
    assert not any(secret in str(lines) for secret in ("key-one", "say something"))


@pytest.mark.parametrize("given", ["", "x" * 200, "line\tbreak", 'quote"'])
async def test_an_unfit_request_id_is_replaced(site: Site, given: str) -> None:
    async with site.session.get("/healthz", headers={"X-Request-ID": given}) as answer:
        made = answer.headers["X-Request-ID"]
    assert made != given
    assert len(made) == 32


def test_what_embeddings_cost_and_where_they_are_lacking_is_told() -> None:
    classifier = Classifier()
    classifier.hits, classifier.misses, classifier.without = 3, 2, 1
    text = Metrics(Router(lambda: None), None, classifier).render().decode()
    classifier.close()
    told = {line.split()[0]: float(line.split()[1]) for line in text.splitlines() if line.startswith("axiond_embedding")}
    assert told == {
        "axiond_embedding_cache_hits_total": 3,
        "axiond_embedding_cache_misses_total": 2,
        "axiond_embedding_failures_total": 1,
    }
