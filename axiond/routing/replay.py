"""The latest requests, and where they would go under another manifest."""

import secrets
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from axiond.errors import RequestError
from axiond.manifest.spec import Manifest
from axiond.report import Move, TrafficPlan
from axiond.report import Untold as UntoldReport
from axiond.routing.choose import LONGEST_NAME
from axiond.routing.decision import Answer, CountTokens, Decision, Features, Question, Verdict
from axiond.routing.features import Needs
from axiond.routing.judge import Judge, again
from axiond.routing.recall import Hashes, Kept, Probes, Untold, keep, recalled, recalling
from axiond.routing.rules import Rules, Scene, decide
from axiond.routing.sticky import digest
from axiond.routing.table import Pool, RouteTable

NOBODY = 401
NO_TEXT = "what they are about hangs on their text, which is not remembered"
NO_TIME = "there was no time for all of them"

Classify = Callable[[str], Verdict]


class Replay:
    """Remembers as many requests as the manifest says, the latest ones."""

    def __init__(self) -> None:
        self._hashes = Hashes(secrets.randbits(64))
        self._kept: deque[Kept] = deque()
        self._keeps_prompts = False
        self._rules: Rules | None = None
        self._probes = Probes()
        self._judge: Judge | None = None

    def note(self, features: Features, needs: Needs, scene: Scene, decision: Decision) -> None:
        """
        Remember a request.

        Args:
            features: what was read of it.
            needs: what was read out of its body.
            scene: that it was decided in.
            decision: what became of it.
        """
        self._follow(scene.table)
        if scene.table.replay_requests and len(features.requested) <= LONGEST_NAME:
            self._kept.append(keep(features, needs, scene, decision, self._probes, self._judge, self._hashes))

    def moves(self, served: RouteTable, candidate: RouteTable, waits_s: Mapping[str, float | None]) -> "Moves":
        """
        What is needed to compare two tables on the requests that are remembered; nothing is computed yet.

        Args:
            served: the routing in force.
            candidate: see `candidate_table`.
            waits_s: how long a request for each model would wait.
        """
        self._follow(served)
        return Moves(tuple(self._kept), self._hashes, served, candidate, waits_s)

    def _follow(self, table: RouteTable) -> None:
        if table.replay_requests != self._kept.maxlen:
            self._kept = deque(self._kept, maxlen=table.replay_requests)
        if self._keeps_prompts and not table.keep_prompts:
            self._kept = deque((replace(kept, text=None) for kept in self._kept), maxlen=table.replay_requests)
        self._keeps_prompts = table.keep_prompts
        if table.rules is not self._rules:
            self._rules = rules = table.rules
            self._probes = Probes.of(rules) if rules else Probes()
            self._judge = Judge.of(rules.index) if rules and rules.index else None


def candidate_table(served: RouteTable, manifest: Manifest, rules: Rules) -> RouteTable:
    """The routing that *manifest* would bring: models that run go on as they do, the others are thought of as on their way."""
    pools = {name: replace(served.pools.get(name) or Pool(name, spec, is_coming=True), spec=spec) for name, spec in manifest.models.items()}
    keys = (manifest.server.api_keys, *manifest.server.key_groups.values())
    return RouteTable(
        generation=served.generation + 1,
        pools=pools,
        names=manifest.public_names(),
        routes={route.name: route for route in manifest.routes},
        api_keys=frozenset(key.get_secret_value() for group in keys for key in group),
        rules=rules,
    )


@dataclass(frozen=True, slots=True)
class Outcome:
    """*status* is that of a refusal, and 0 of a request that *model* answers."""

    route: str
    model: str
    status: int = 0


@dataclass(frozen=True, slots=True)
class Moves:
    """Two tables, and the requests to compare them on."""

    kept: Sequence[Kept]
    hashes: Hashes
    served: RouteTable
    candidate: RouteTable
    waits_s: Mapping[str, float | None]

    def report(self, is_over: Callable[[], bool] = lambda: False, classify: Classify | None = None) -> TrafficPlan:
        """
        Count who would move where. Blocks; begins with the latest request.

        Args:
            is_over: whether to stop where one is.
            classify: tells what a text is about under the candidate; used where prompts are kept.
        """
        before = Bench(self.served, self.hashes, self.waits_s, None)
        after = Bench(self.candidate, self.hashes, self.waits_s, classify)
        moves: Counter[tuple[Outcome, Outcome]] = Counter()
        untold: Counter[str] = Counter()
        for kept in reversed(self.kept):
            if is_over():
                untold[NO_TIME] = len(self.kept) - moves.total() - untold.total()
                break
            try:
                moves[before.outcome(kept), after.outcome(kept)] += 1
            except Untold as exc:
                untold[str(exc)] += 1
        return TrafficPlan(
            requests=len(self.kept),
            since=self.kept[0].at if self.kept else None,
            moves=tuple(_move(old, new, count) for (old, new), count in moves.most_common() if old != new),
            untold=tuple(UntoldReport(reason=reason, count=count) for reason, count in untold.most_common()),
        )


class Bench:
    """Decides remembered requests by one table."""

    def __init__(self, table: RouteTable, hashes: Hashes, waits_s: Mapping[str, float | None], classify: Classify | None) -> None:
        rules = table.rules or Rules()
        self._table, self._waits_s, self._classify = table, waits_s, classify
        self._rules = recalling(rules, hashes)
        self._judge = Judge.of(rules.index) if rules.index else None
        self._keys = frozenset(map(digest, table.api_keys))

    def outcome(self, kept: Kept) -> Outcome:
        """What would become of a request. Raises Untold."""
        key = kept.features.key
        if self._keys and not key:
            raise Untold("no API key was asked for then")
        if self._keys and key not in self._keys:
            return Outcome("", "", NOBODY)
        features = recalled(kept, self._rules.groups.get(key, ""))
        deciding = decide(self._rules, features, Scene(self._table, kept.draw, kept.at, self._waits_s.get))
        answer: Answer = None
        try:
            while True:
                answer = self._answer(kept, deciding.send(answer))
        except StopIteration as made:
            return _outcome(made.value)
        except RequestError as exc:
            return Outcome("", "", exc.status)

    def _answer(self, kept: Kept, question: Question) -> Answer:
        if isinstance(question, CountTokens):
            if question.model not in kept.counts:
                raise Untold(f"how many tokens they have for {question.model} was not counted")
            return kept.counts[question.model]
        verdict = again(kept.verdict, kept.judge, self._judge) if kept.verdict and kept.judge and self._judge else None
        if verdict is None and self._classify and kept.text is not None:
            return self._classify(kept.text)
        if verdict is None:
            raise Untold(NO_TEXT)
        return verdict


def _outcome(decision: Decision) -> Outcome:
    return Outcome(decision.route, "", decision.refusal[0]) if decision.refusal else Outcome(decision.route, decision.models[0])


def _move(old: Outcome, new: Outcome, count: int) -> Move:
    return Move(
        from_route=old.route,
        from_model=old.model,
        from_status=old.status,
        to_route=new.route,
        to_model=new.model,
        to_status=new.status,
        count=count,
    )
