"""
What `model = "auto"` gains by knowing which models are loaded: quality of answers against waiting, at several weights.

Labelled requests meet models in virtual time: a generalist and two specialists, with memory for two of the three. Each takes
one request at a time; who is not loaded first waits until another model is idle, and then for its load. The daemon's own
`score_models()` chooses.

    python -m bench.auto

The quality of an answer is what the model's `fit` says for the label; the router knows a verdict instead, which is right as
often as bench/routing.py found. Prints a table, and last one JSON line. No machine has to do with it: it runs a simulation.
"""

import argparse
import json
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import fmean, quantiles

from rich.console import Console
from rich.table import Table

from axiond.manifest.spec import Auto, ModelSpec
from axiond.routing.auto import score_models
from axiond.routing.decision import Verdict

RIGHT = 0.9
ROOM = 2
LOAD_S, ANSWER_S = 8.0, 2.0
GAPS_S = (2.0, 5.0, 15.0)
WEIGHTS = (0.01, 0.02, 0.03, 0.05, 0.1, 0.2)
DOMAINS = ("general", "code", "legal")
MODELS: Mapping[str, ModelSpec] = {
    "generalist": ModelSpec(source="-", fit={"general": 0.8, "code": 0.5, "legal": 0.5}),
    "coder": ModelSpec(source="-", load="lazy", fit={"general": 0.3, "code": 0.9, "legal": 0.2}),
    "lawyer": ModelSpec(source="-", load="lazy", fit={"general": 0.3, "code": 0.2, "legal": 0.9}),
}


@dataclass(frozen=True)
class Request:
    at_s: float
    label: str
    verdict: Verdict


@dataclass(frozen=True)
class Point:
    """*quality* is the mean fit of what answered; *best* how often that was the best model for the label."""

    gap_s: float
    residency: bool
    weight: float
    quality: float
    best: float
    mean_wait_s: float
    p99_wait_s: float
    loads: int


@dataclass
class Machine:
    """When each loaded model is free, and has last been used."""

    free_s: dict[str, float] = field(default_factory=lambda: {"generalist": 0.0})
    loads: int = 0

    def wait_s(self, model: str, now_s: float) -> float:
        """How long a request that comes now waits for *model*."""
        if model in self.free_s:
            return max(0.0, self.free_s[model] - now_s)
        return max(0.0, min(self.free_s.values()) - now_s if len(self.free_s) == ROOM else 0.0) + LOAD_S

    def answer(self, model: str, now_s: float) -> None:
        """Load it, in place of the one that is idle first, if it has to be; then it is busy."""
        wait_s = self.wait_s(model, now_s)
        if model not in self.free_s:
            self.loads += 1
            if len(self.free_s) == ROOM:
                del self.free_s[min(self.free_s, key=self.free_s.__getitem__)]
        self.free_s[model] = now_s + wait_s + ANSWER_S


def requests(count: int, gap_s: float, seed: int = 1) -> Iterator[Request]:
    """Labelled ones, *gap_s* apart in the mean. A wrong verdict is closer to the right one than a right verdict to others."""
    dice, at_s = random.Random(seed), 0.0
    for _ in range(count):
        at_s += dice.expovariate(1 / gap_s)
        label = dice.choice(DOMAINS)
        other = dice.choice([domain for domain in DOMAINS if domain != label])
        is_right, best = dice.random() < RIGHT, dice.uniform(0.4, 0.9)
        first, second = (label, other) if is_right else (other, label)
        scores = {first: best, second: best * dice.uniform(0.2 if is_right else 0.6, 1.0)}
        yield Request(at_s, label, Verdict(first, best, "embedding", scores))


def run(asked: Sequence[Request], auto: Auto, gap_s: float) -> Point:
    """Let `auto` choose for each request in turn."""
    machine, waits_s, fits, best = Machine(), [], [], 0
    for request in asked:
        expected_s = {model: machine.wait_s(model, request.at_s) for model in MODELS}
        chosen = score_models(auto, MODELS, request.verdict, expected_s)[0].model
        machine.answer(chosen, request.at_s)
        waits_s.append(expected_s[chosen])
        fits.append(MODELS[chosen].fit[request.label])
        best += fits[-1] == max(spec.fit[request.label] for spec in MODELS.values())
    weight = auto.wait if auto.residency else 0.0
    return Point(gap_s, auto.residency, weight, fmean(fits), best / len(fits), fmean(waits_s), quantiles(waits_s, n=100)[98], machine.loads)


def frontier(gap_s: float, count: int = 2000) -> list[Point]:
    """Without residency first, then with it at each weight."""
    asked = [*requests(count, gap_s)]
    autos = [Auto(residency=False), *(Auto(wait=weight) for weight in WEIGHTS)]
    return [run(asked, auto, gap_s) for auto in autos]


def show(points: Iterable[Point]) -> None:
    table = Table("a request each", "residency", "auto.wait", "quality", "best model", "mean wait", "p99 wait", "loads", box=None)
    for point in points:
        table.add_row(
            f"{point.gap_s:g} s", "on" if point.residency else "off", f"{point.weight:g}", f"{point.quality:.3f}", f"{point.best:.0%}",
            f"{point.mean_wait_s:.1f} s", f"{point.p99_wait_s:.0f} s", str(point.loads),
        )  # fmt: skip
    Console(width=120).print(table)


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    points = [point for gap_s in GAPS_S for point in frontier(gap_s)]
    show(points)
    print(json.dumps([asdict(point) for point in points]))


if __name__ == "__main__":
    main()
