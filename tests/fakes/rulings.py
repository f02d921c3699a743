"""Manifests, tables and requests to decide on."""

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, cast

from axiond.engine.engine import Endpoint
from axiond.manifest.spec import Manifest
from axiond.reconcile.state import EngineKey
from axiond.routing.decision import Answer, CountTokens, Decision, Features, FindDomain, Prompt, Question, Trace, Verdict
from axiond.routing.rules import Rules, Scene, decide
from axiond.routing.table import Pool, RouteTable

MONDAY = datetime(2026, 11, 23, 12, 0)  # local time has no zone
INDEX = cast("Any", object())  # rules never look into it


def manifest(*routes: Mapping[str, Any], models: Mapping[str, Any] | None = None, **tables: Any) -> Manifest:
    """*routes* over the models a, b and c, of which a has the alias `first` and the adapter `poet`."""
    default = {"a": {"aliases": ["first"], "lora": {"poet": "/poet"}}, "b": {}, "c": {}}
    specs = {name: {"source": f"/{name}", **spec} for name, spec in (models or default).items()}
    return Manifest.model_validate({"models": specs, "routes": routes, **tables})


def table(wanted: Manifest, rules: Rules | None = None, cold: tuple[str, ...] = ()) -> RouteTable:
    """Every model has an engine, but those that are *cold*."""
    pools = {
        name: Pool(name, spec, () if name in cold else (Endpoint(EngineKey(name, "d", 0), name),)) for name, spec in wanted.models.items()
    }
    return RouteTable(1, pools, wanted.public_names(), {route.name: route for route in wanted.routes}, rules=rules)


def decided(
    wanted: Manifest,
    features: Features,
    *,
    draw: float = 0.0,
    now: datetime = MONDAY,
    outlook_s: Callable[[str], float | None] = lambda _: 0.0,
    verdict: Verdict | None = None,
    tokens: int | None = None,
    trace: Trace | None = None,
    asked: list[Question] | None = None,
) -> Decision:
    """What is decided where *verdict* and *tokens* are the answers; *asked* is told the questions."""
    rules = Rules.of(wanted, INDEX)
    course = decide(rules, features, Scene(table(wanted, rules), draw, now, outlook_s), trace)
    answer: Answer = None
    try:
        while True:
            question = course.send(answer)  # type: ignore[arg-type]
            if asked is not None:
                asked.append(question)
            match question:
                case FindDomain():
                    answer = verdict
                case CountTokens():
                    answer = tokens
    except StopIteration as end:
        return cast("Decision", end.value)


def request(requested: str = "m", text: str = "", *, tokens: tuple[int, int, int] = (0, 0, 0), talk: str = "", **given: Any) -> Features:
    """*tokens* are least, estimate and most; *talk* is the conversation."""
    least, about, most = tokens
    return Features(requested, prompt=Prompt(text, about, least, most, talk), **given)
