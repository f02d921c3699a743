"""From a request's features to the decision which model answers it: the first rule that matches. Pure, and asks instead of doing."""

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING

from axiond.manifest.routes import Auto, Route
from axiond.manifest.spec import Manifest
from axiond.routing.choose import candidates, draw_model, known_models
from axiond.routing.conditions import Test, conditions, identity, names_in
from axiond.routing.decision import Answer, Decision, Features, Question, Trace
from axiond.routing.features import Needs, needs_of
from axiond.routing.sticky import digest, share_of
from axiond.routing.table import RouteTable

if TYPE_CHECKING:
    from axiond.semantic.index import SemanticIndex


@dataclass(frozen=True, slots=True)
class Rule:
    """A route with its conditions compiled; *name* is what requests ask for, where it has no `when`."""

    route: Route
    tests: tuple[Test, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Rules:
    """
    What is compiled once per generation.

    *names*: public names beside those of models, that rules answer to. *groups*: API keys' digests to their groups.
    """

    rules: tuple[Rule, ...] = ()
    needs: Needs = field(default_factory=Needs)
    auto: Auto = field(default_factory=Auto)
    index: "SemanticIndex | None" = None
    names: tuple[str, ...] = ()
    groups: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, manifest: Manifest, index: "SemanticIndex | None" = None) -> "Rules":
        """Compile the routing of *manifest*; *index* tells domains."""
        scores_domains = bool(manifest.domains) and any(spec.fit for spec in manifest.models.values())
        names = [name for route in manifest.routes for name in (names_in(route.when.model) if route.when else [route.name])]
        return cls(
            tuple(_compile(route) for route in manifest.routes),
            needs_of(manifest.routes, scores_domains),
            manifest.auto,
            index,
            tuple(dict.fromkeys(names)),
            {digest(key.get_secret_value()): group for group, keys in reversed([*manifest.server.key_groups.items()]) for key in keys},
        )

    def group_of(self, key: str) -> str:
        """The group of an API key; "" where it has none."""
        return self.groups.get(digest(key), "") if key and self.groups else ""


@dataclass(frozen=True, slots=True)
class Scene:
    """
    What a decision depends on beside the request.

    *draw* in [0, 1) shares requests out by weight. *now* is this machine's local time. *outlook_s*: how long a request
    for a model would wait; None where nobody knows.
    """

    table: RouteTable
    draw: float
    now: datetime
    outlook_s: Callable[[str], float | None]


def decide(rules: Rules, features: Features, scene: Scene, trace: Trace | None = None) -> Generator[Question, Answer, Decision]:
    """
    Decide by the first rule that matches, and else by the name that is asked for.

    Args:
        rules: in force.
        features: the request.
        scene: everything else.
        trace: is told how the decision comes about.

    Yields:
        What has to be found out before a rule can be judged; only where its other conditions hold.

    Raises:
        RequestError: 404 unknown name; 503 before any generation is served.
    """
    yield from ()
    for rule in rules.rules:
        if all(test.holds(features, scene.now) for test in rule.tests):
            return _decision(rule.route, features, scene)
    return Decision(candidates(scene.table, features.requested, scene.draw), reason="name")


def _compile(route: Route) -> Rule:
    if route.when:
        return Rule(route, conditions(route.when, route.name))
    name = route.name
    return Rule(route, (Test("model", name, lambda f, _: f.requested == name, lambda f: f.requested[:128]),))


def _decision(route: Route, features: Features, scene: Scene) -> Decision:
    reason = f"route={route.name}"
    if route.refuse:
        return Decision(route=route.name, reason=f"{reason} refuse", refusal=(route.refuse.status, route.refuse.message))
    if not route.models:
        models = candidates(scene.table, features.requested, scene.draw)
    else:
        models = known_models(scene.table, (draw_model(route.models, scene.draw), *route.fallback))
    if route.canary and share_of(f"canary {route.name}", identity(features, route.canary.sticky)) * 100 < route.canary.percent:
        models = known_models(scene.table, (route.canary.model, *models))
    return Decision(
        models=models,
        route=route.name,
        reason=f"{reason} weight",
        fallback_on=frozenset(route.fallback_on),
        timeout_s=route.timeout,
        max_wait_s=route.max_wait,
        shadow=route.shadow.model if route.shadow else "",
        sampling=route.sampling.given,
        system_prompt=route.system_prompt,
    )
