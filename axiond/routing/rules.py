"""From a request's features to the decision which model answers it: the first rule that matches. Pure, and asks instead of doing."""

import math
from collections.abc import Callable, Generator, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any

from axiond.errors import RequestError
from axiond.manifest.routes import AUTO, Auto, Route, Sticky
from axiond.manifest.spec import Manifest
from axiond.routing import language
from axiond.routing.auto import score_models
from axiond.routing.choose import LONGEST_NAME, can_answer, candidates, draw_model, has_auto, known_models
from axiond.routing.conditions import Bounds, Case, Test, any_of, asks_for, conditions, identity, names_in
from axiond.routing.decision import (
    ANY_FAILURE,
    Answer,
    Condition,
    CountTokens,
    Decision,
    Features,
    FindDomain,
    Question,
    Scored,
    Trace,
    Tried,
    Verdict,
)
from axiond.routing.features import EVERYTHING, Needs, needs_of
from axiond.routing.sticky import digest, share_of
from axiond.routing.table import RouteTable

if TYPE_CHECKING:
    from axiond.semantic.index import SemanticIndex

LONGEST_REASON = 200


@dataclass(frozen=True, slots=True)
class Rule:
    """A route with its conditions compiled: *tests* are those that need nothing from outside."""

    route: Route
    tests: tuple[Test, ...]
    bounds: Bounds | None = None
    domains: frozenset[str] = frozenset()

    @classmethod
    def of(cls, route: Route) -> "Rule":
        when = route.when
        if when is None:
            return cls(route, (asks_for(route.name),))
        return cls(route, conditions(when, route.name), Bounds.of(when), frozenset(when.domain))


@dataclass(frozen=True, slots=True, eq=False)
class Rules:
    """
    What is compiled once per generation.

    *index* tells domains. *names*: public names beside those of models, that rules answer to. *groups*: digests of API
    keys to their groups. *any_regex* stands for those of all rules.
    """

    rules: tuple[Rule, ...] = ()
    needs: Needs = field(default_factory=Needs)
    auto: Auto = field(default_factory=Auto)
    index: "SemanticIndex | None" = None
    names: tuple[str, ...] = ()
    groups: Mapping[str, str] = field(default_factory=dict)
    any_regex: Any = None

    @classmethod
    def of(cls, manifest: Manifest, index: "SemanticIndex | None" = None) -> "Rules":
        """Compile the routing of *manifest*."""
        scores_domains = bool(manifest.domains) and any(spec.fit for spec in manifest.models.values())
        names = [name for route in manifest.routes for name in (names_in(route.when.model) if route.when else [route.name])]
        groups = [*manifest.server.key_groups.items()]
        needs = EVERYTHING if manifest.server.keep_prompts else needs_of(manifest.routes, scores_domains)
        if needs.language:
            language.load()  # now, so that no request waits for it
        return cls(
            tuple(map(Rule.of, manifest.routes)),
            needs,
            manifest.auto,
            index,
            tuple(dict.fromkeys(names)),
            {digest(key.get_secret_value()): group for group, keys in reversed(groups) for key in keys},
            any_of([pattern for route in manifest.routes if route.when for pattern in route.when.regex]),
        )

    def group_of(self, key: str) -> str:
        """The group of an API key, the first of several; "" where it has none."""
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
        What has to be found out before a rule can be judged, where its other conditions hold, or models be scored.

    Raises:
        RequestError: 404 unknown name; 503 before any generation is served.
    """
    trial = _Trial(rules, features, scene, trace)
    for rule in rules.rules:
        tried = trial.begin(rule)
        if not trial.holds_at_once(rule, tried):
            continue
        if (rule.domains or rule.bounds) and not (yield from trial.holds_when_asked(rule, tried)):
            continue
        if tried:
            tried.matched = True
        return (yield from trial.act(rule))
    return (yield from trial.by_name())


@dataclass(slots=True)
class _Trial:
    """One decision while it is made: what was found out counts for all rules."""

    rules: Rules
    features: Features
    scene: Scene
    trace: Trace | None
    case: Case = field(init=False)
    verdict: Verdict | None = None
    is_verdict_known: bool = False
    is_scored: bool = False
    counts: dict[str, int | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.case = Case(self.features, self.scene.now, self.rules.any_regex)

    def begin(self, rule: Rule) -> Tried | None:
        if self.trace is None:
            return None
        self.trace.tried.append(tried := Tried(rule.route.name, matched=False))
        return tried

    def holds_at_once(self, rule: Rule, tried: Tried | None) -> bool:
        """Whether all conditions hold that need nothing from outside."""
        for test in rule.tests:
            holds = test.holds(self.case)
            if tried:
                _note(tried, Condition(test.name, test.wants, test.met(self.case), holds))
            if not holds:
                return False
        if rule.bounds and self._estimated(rule.bounds) is False:
            if tried:
                self._note_tokens(rule, rule.bounds, tried, holds=False)
            return False
        return True

    def holds_when_asked(self, rule: Rule, tried: Tried | None) -> Generator[Question, Answer, bool]:
        """Whether the other conditions hold: the domain first, for one answer serves all rules."""
        if rule.domains:
            verdict = yield from self.ask_domain()
            holds = None if verdict is None else verdict.domain in rule.domains
            if tried:
                _note(tried, Condition("domain", ", ".join(sorted(rule.domains)), _shown(verdict), holds))
            if not holds:
                return False
        if rule.bounds:
            holds = self._estimated(rule.bounds)
            if holds is None:
                count = yield from self.ask_tokens(rule)
                holds = rule.bounds.hold(self.features.prompt.tokens if count is None else count)
            if tried:
                self._note_tokens(rule, rule.bounds, tried, holds)
            return holds
        return True

    def act(self, rule: Rule) -> Generator[Question, Answer, Decision]:
        """What becomes of a request that *rule* matches."""
        route = rule.route
        if route.refuse:
            refusal = (route.refuse.status, route.refuse.message)
            return Decision(
                route=route.name, reason=self._reason(rule, "refuse"), refusal=refusal, verdict=self.verdict, counts=self.counts
            )
        models, how = yield from self._choose(route)
        if (canary := route.canary) and self._share("canary", route, canary.sticky) < canary.percent:
            models, how = (canary.model, *models), "canary"
        models = known_models(self.scene.table, (*models, *route.fallback))
        if not models:
            raise RequestError(503, "no_model", f"None of the models of route `{route.name}` is served.", retry_after_s=5)
        return Decision(
            models=models,
            route=route.name,
            reason=self._reason(rule, how),
            fallback_on=frozenset(route.fallback_on),
            timeout_s=route.timeout,
            max_wait_s=route.max_wait,
            shadow=self._shadow(route, models[0]),
            sampling=route.sampling.given,
            system_prompt=route.system_prompt,
            verdict=self.verdict,
            counts=self.counts,
            is_scored=self.is_scored,
        )

    def by_name(self) -> Generator[Question, Answer, Decision]:
        """The decision for a request that no rule takes."""
        models, how = yield from self._asked_for()
        fallback_on = ANY_FAILURE if len(models) > 1 else frozenset()
        return Decision(models, reason=how, fallback_on=fallback_on, verdict=self.verdict, counts=self.counts, is_scored=self.is_scored)

    def ask_domain(self) -> Generator[Question, Answer, Verdict | None]:
        """What the prompt is about; None where nobody can tell. Asked once."""
        if not self.is_verdict_known and self.rules.index is not None:
            answer = yield FindDomain()
            self.verdict = answer if isinstance(answer, Verdict) else None
        self.is_verdict_known = True
        return self.verdict

    def ask_tokens(self, rule: Rule) -> Generator[Question, Answer, int | None]:
        """How long the prompt is for the first model of *rule*, or the one that is asked for; None where nobody can tell."""
        model = self._reader(rule)
        if model and model not in self.counts:
            answer = yield CountTokens(model)
            self.counts[model] = answer if isinstance(answer, int) else None
        return self.counts.get(model)

    def _choose(self, route: Route) -> Generator[Question, Answer, tuple[tuple[str, ...], str]]:
        """The models that *route* names, best first, and in a word how they were chosen."""
        if not route.models:
            return (yield from self._asked_for())
        names = tuple(share.model for share in route.models)
        if route.choose == "score":
            return (yield from self._score(known_models(self.scene.table, names), "score"))
        return (draw_model(route.models, self.scene.draw),), "weight" if len(names) > 1 else ""

    def _asked_for(self) -> Generator[Question, Answer, tuple[tuple[str, ...], str]]:
        table, requested = self.scene.table, self.features.requested
        if requested == AUTO and has_auto(table):
            return (yield from self._score(table.pools, "auto"))
        if requested in self.rules.names and requested not in table.names:
            raise RequestError(404, "model_not_found", f"No route for `{requested[:LONGEST_NAME]}` takes this request.", param="model")
        return candidates(table, requested, self.scene.draw), "name"

    def _score(self, models: Iterable[str], how: str) -> Generator[Question, Answer, tuple[tuple[str, ...], str]]:
        pools = {model: self.scene.table.pools[model] for model in models}
        specs = {model: pool.spec for model, pool in pools.items()}
        verdict = (yield from self.ask_domain()) if any(spec.fit for spec in specs.values()) else None
        waits_s = {model: self.scene.outlook_s(model) for model, pool in pools.items() if can_answer(pool)}
        self.is_scored = True
        scored = score_models(self.rules.auto, specs, verdict, waits_s)
        if self.trace:
            self.trace.scored = scored
        return tuple(found.model for found in scored), f"{how} {_figures(scored[0])}" if scored else how

    def _shadow(self, route: Route, chosen: str) -> str:
        """The model that gets a copy, unless it is the one that answers anyway. The draw is thrown anew, with the same dice."""
        shadow = route.shadow
        if shadow is None or share_of(f"shadow {route.name}", repr(self.scene.draw)) * 100 >= shadow.percent:
            return ""
        return next((model for model in known_models(self.scene.table, (shadow.model,)) if model != chosen), "")

    def _share(self, what: str, route: Route, sticky: Sticky) -> float:
        return share_of(f"{what} {route.name}", identity(self.features, sticky)) * 100

    def _estimated(self, bounds: Bounds) -> bool | None:
        return bounds.hold_between(self.features.prompt.least_tokens, self.features.prompt.most_tokens)

    def _reader(self, rule: Rule) -> str:
        names = (share.model for share in rule.route.models) if rule.route.models else (self.features.requested,)
        return next(iter(known_models(self.scene.table, names)), "")

    def _note_tokens(self, rule: Rule, bounds: Bounds, tried: Tried, holds: bool) -> None:
        count, prompt = self.counts.get(self._reader(rule)), self.features.prompt
        met = f"about {prompt.tokens} ({prompt.least_tokens} to {prompt.most_tokens})" if count is None else str(count)
        _note(tried, Condition("prompt_tokens", str(bounds), met, holds))

    def _reason(self, rule: Rule, how: str) -> str:
        words = [f"route={rule.route.name}", *(_held(test, self.features) for test in rule.tests)]
        if rule.bounds:
            count = self.counts.get(self._reader(rule))
            words.append(f"tokens~{self.features.prompt.tokens}" if count is None else f"tokens={count}")
        if rule.domains and self.verdict:
            words.append(f"domain={self.verdict.domain}({self.verdict.score:.2f} {self.verdict.stage})")
        return " ".join(word for word in (*words, how) if word)[:LONGEST_REASON]


def _note(tried: Tried, condition: Condition) -> None:
    tried.conditions.append(condition)
    if condition.holds is None:
        tried.matched = None


def _held(test: Test, features: Features) -> str:
    return f"language={features.language}" if test.name == "language" else test.name


def _figures(best: Scored) -> str:
    wait = "?" if best.wait_s is None else "never" if best.wait_s == math.inf else f"{best.wait_s:.0f}s"
    return f"fit={best.fit:.2f} wait={wait}"


def _shown(verdict: Verdict | None) -> str:
    if verdict is None:
        return "nobody can tell"
    return f"{verdict.domain or 'none'} ({verdict.score:.2f} {verdict.stage})"
