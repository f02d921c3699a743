"""Routing holds the event loop for a moment only, whatever the request."""

import asyncio
import random
from collections.abc import Callable, Coroutine, Iterator
from statistics import median
from time import thread_time
from types import SimpleNamespace
from typing import Any

import orjson
import pytest
from multidict import CIMultiDict

from axiond.gateway.body import Ask, model_and_fields
from axiond.gateway.envelope import Dialect
from axiond.gateway.exchange import Exchange
from axiond.gateway.openai import add_what_the_route_wants
from axiond.gateway.route import Aids, route
from axiond.manifest.spec import Manifest
from axiond.routing.answers import Answers
from axiond.routing.router import Router
from axiond.routing.rules import Rules
from axiond.routing.table import Pool, RouteTable
from axiond.semantic.classify import Classifier
from axiond.semantic.index import build_index
from tests.fakes.bag import BagEncoder

MOST_S = 0.005
REPEATS = 7
TEXT = "the sea keeps its own counsel and python writes a function about contracts für das Recht naïve café"
PATH = "/v1/chat/completions"


class Timed(Coroutine[Any, Any, Any]):
    """A coroutine whose steps on the loop are timed, in seconds of its thread."""

    def __init__(self, inner: Coroutine[Any, Any, Any], steps_s: list[float]) -> None:
        self._inner, self._steps_s = inner, steps_s

    def send(self, value: Any) -> Any:
        return self._step(lambda: self._inner.send(value))

    def throw(self, *error: Any) -> Any:
        return self._step(lambda: self._inner.throw(*error))

    def close(self) -> None:
        self._inner.close()

    def __await__(self) -> Iterator[Any]:
        raise NotImplementedError

    def _step(self, step: Callable[[], Any]) -> Any:
        began_s = thread_time()
        try:
            return step()
        finally:
            self._steps_s.append(thread_time() - began_s)


def manifest() -> Manifest:
    """Rules that need everything that can be read of a request, none of which takes it but the last."""
    never = [
        {"tools": True}, {"images": True, "tools": True}, {"stream": True}, {"response_format": ["json_schema"]}, {"language": ["fi"]},
        {"min_prompt_tokens": 10_000_000}, {"keywords": ["a phrase that is nowhere", "straße"]}, {"regex": ["(a|b)+c{3,9}$", "(?i)zzz+"]},
        {"domain": ["cooking"]}, {"percent": 0.000001}, {"headers": {"x-team": "red"}}, {"hours": "00:00-24:00", "model": ["x*"]},
    ]  # fmt: skip
    routes = [{"name": f"r{n}", "when": when, "models": ["m"]} for n, when in enumerate(never * 4)]
    last = {"name": "last", "when": {"path": ["/v1/*"]}, "models": ["m"], "canary": {"model": "n", "percent": 50}}
    adds = {"sampling": {"temperature": 0.2}, "system_prompt": {"text": "Be kind.", "mode": "prepend"}}
    texts = [f"an example about the number {n}" for n in range(30)]
    domain = {"description": "Food.", "examples": texts, "keywords": [f"dish{n}" for n in range(500)]}
    return Manifest.model_validate({
        "models": {name: {"source": "/m", "fit": {"cooking": 0.9}} for name in "mn"},
        "routes": [*routes, {**last, **adds}],
        "domains": {"cooking": domain, "sailing": {**domain, "keywords": ["boat"]}},
    })  # fmt: skip


def prompt(words: int) -> bytes:
    text = " ".join(random.Random(words).choices(TEXT.split(), k=words))
    return orjson.dumps({"model": "m", "messages": [{"role": "system", "content": "x"}, {"role": "user", "content": text}]})


def conversation(turns: int) -> bytes:
    return orjson.dumps({"model": "m", "messages": [{"role": "user", "content": 'hi "you"\n'}] * turns})


def image(size: int) -> bytes:
    part = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * size}}
    return orjson.dumps({"model": "m", "messages": [{"role": "user", "content": [part, {"type": "text", "text": "what is it"}]}]})


@pytest.fixture(scope="module")
def table() -> RouteTable:
    wanted = manifest()
    pools = {name: Pool(name, spec) for name, spec in wanted.models.items()}
    index = build_index(wanted.domains, wanted.semantic, BagEncoder())  # type: ignore[arg-type]
    return RouteTable(1, pools, wanted.public_names(), {each.name: each for each in wanted.routes}, rules=Rules.of(wanted, index))


@pytest.mark.parametrize(
    "body",
    [
        *(pytest.param(lambda words=words: prompt(words), id=f"{words}-words") for words in (10, 100, 1000, 10_000)),
        pytest.param(lambda: prompt(1_500_000), id="10-mb-of-words"),
        pytest.param(lambda: conversation(250_000), id="10-mb-of-turns"),
        pytest.param(lambda: image(10_000_000), id="10-mb-image"),
    ],
)
async def test_no_step_of_routing_holds_the_loop(table: RouteTable, body: Callable[[], bytes]) -> None:
    """
    From the body, in which the name was found, to the one that is sent, with questions to a classifier.

    Steps are timed, in seconds of their thread, so that what else runs on the machine does not count.
    """
    raw, steps_s = body(), list[float]()
    router = Router(lambda: None)
    router.publish(table)
    request: Any = SimpleNamespace(headers=CIMultiDict(), rel_url=SimpleNamespace(raw_path=PATH))

    async def decide(ask: Ask, number: int) -> None:
        classifier = Classifier(deadline_s=5.0)  # that remembers nothing yet
        exchange = Exchange(request, str(number), Dialect.OPENAI, 0.0, client=f"client {number}")
        decision = await route(exchange, ask, router, Aids(Answers(classifier)))
        classifier.close()
        assert decision.route == "last"
        add_what_the_route_wants(PATH, ask, decision)
        assert ask.body_for("m") is not raw

    loop, longest_s = asyncio.get_running_loop(), []
    loop.set_task_factory(lambda loop, inner, **options: asyncio.Task(Timed(inner, steps_s), loop=loop, **options))
    try:
        for number in range(REPEATS):
            steps_s.clear()
            await asyncio.create_task(decide(Ask("m", raw, known=model_and_fields(raw)[1]), number))
            longest_s.append(max(steps_s))
    finally:
        loop.set_task_factory(None)
    print(f"longest step {median(longest_s) * 1e3:.2f} ms")
    assert median(longest_s) < MOST_S, longest_s
