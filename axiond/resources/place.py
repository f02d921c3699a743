"""How many cores each of several engines gets, and which: as near to each other as possible, and where they are already. Pure."""

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from itertools import product
from operator import attrgetter
from typing import TypeVar

from axiond.resources.machine import Core

T = TypeVar("T")
Placed = dict[T, tuple[Core, ...]]
LEVELS: tuple[Callable[[Core], int], ...] = (attrgetter("package"), attrgetter("node"), attrgetter("cluster"))
ALMOST = 1e-9


def allot(free: Sequence[Core], weights: Mapping[T, float], held: Mapping[T, Sequence[Core]]) -> Placed[T]:
    """
    Share *free* cores out by weight, if there are enough.

    What is *held* stays so while it is fair; of two counts next to an exact share, the one that needs fewer nodes is taken.
    """
    exact = exact_shares(len(free), list(weights.values()))
    had = [len(held.get(one, ())) for one in weights]
    if sum(had) == len(free) and all(abs(count - share) < 1 - ALMOST for count, share in zip(had, exact, strict=True)):
        return {one: tuple(held[one]) for one in weights}
    counts = core_counts(exact, had)
    best = _place_counts(free, weights, counts, held)
    while _node_count(best) > len(weights):
        others = (_place_counts(free, weights, other, held) for other in _nudged(counts, exact))
        better = next((other for other in others if _node_count(other) < _node_count(best)), None)
        if better is None:
            break
        best, counts = better, [len(better[one]) for one in weights]
    return best


def exact_shares(cores: int, weights: Sequence[float]) -> list[float]:
    """Share *cores* out by weight, at least one for each."""
    small: set[int] = set()
    while True:
        rest = [index for index in range(len(weights)) if index not in small]
        left, total = cores - len(small), sum(weights[index] for index in rest)
        exact = {index: left * weights[index] / total for index in rest}
        if not (smaller := {index for index in rest if exact[index] < 1 - ALMOST}):
            return [exact.get(index, 1.0) for index in range(len(weights))]
        small |= smaller


def core_counts(exact: Sequence[float], held: Sequence[int]) -> list[int]:
    """Whole cores, each count next to its exact share; between equals, those that have *held* more keep it."""
    counts = [int(share + ALMOST) for share in exact]
    by_remainder = sorted(range(len(exact)), key=lambda index: (-round(exact[index] - counts[index], 9), -held[index], index))
    for index in by_remainder[: round(sum(exact)) - sum(counts)]:
        counts[index] += 1
    return counts


def place(free: Sequence[Core], counts: Mapping[T, int], held: Mapping[T, Sequence[Core]]) -> Placed[T]:
    """
    Choose among *free* cores.

    Everyone keeps what it has *held*, as far as its count goes, unless choosing anew brings somebody onto fewer nodes.
    """
    stay = _place(free, counts, held, is_staying=True)
    anew = _place(free, counts, held, is_staying=False)
    return anew if _node_count(anew) < _node_count(stay) else stay


def take(free: Sequence[Core], count: int, liked: Collection[Core] = frozenset(), level: int = 0) -> tuple[Core, ...]:
    """
    Take *count* cores from as few packages, nodes and clusters as possible.

    Of several that suffice, the one with most of the *liked* cores, or next to them, then the one with least to spare.
    """
    liked = frozenset(liked)
    if level == len(LEVELS):
        return tuple(sorted(free, key=lambda core: (core not in liked, core.cpus))[:count])
    of = LEVELS[level]
    homes = {of(core) for core in liked}
    groups = {number: [core for core in free if of(core) == number] for number in sorted({of(core) for core in free})}
    taken: list[Core] = []
    while (left := count - len(taken)) > 0 and groups:
        sizes = {number: len(group) for number, group in groups.items()}
        attraction = {number: (sum(core in liked for core in group), number in homes) for number, group in groups.items()}
        fitting = [number for number in groups if sizes[number] >= left]
        if fitting:
            chosen = max(fitting, key=lambda number: (attraction[number], -sizes[number], -number))
        else:
            chosen = max(groups, key=lambda number: (sizes[number], attraction[number], -number))
        taken += take(groups.pop(chosen), left, liked, level + 1)
    return tuple(taken)


def spread(cores: Sequence[Core], weights: Mapping[T, float], held: Mapping[T, Sequence[Core]]) -> Placed[T]:
    """One core for each of more than there are cores: none gets more company than it must, the heavy get the light."""
    most = -(-len(weights) // len(cores))
    company = Counter(dict.fromkeys(cores, 0))
    load = dict.fromkeys(cores, 0.0)
    placed: Placed[T] = {}

    def put(one: T, core: Core) -> None:
        placed[one] = (core,)
        company[core] += 1
        load[core] += weights[one]

    for one in weights:
        if (kept := next((core for core in held.get(one, ()) if core in load), None)) and company[kept] < most:
            put(one, kept)
    for one in sorted(weights, key=lambda one: -weights[one]):
        if one not in placed:
            put(one, min((core for core in cores if company[core] < most), key=lambda core: (load[core], core.cpus)))
    return placed


def _place(free: Sequence[Core], counts: Mapping[T, int], held: Mapping[T, Sequence[Core]], *, is_staying: bool) -> Placed[T]:
    left = set(free)
    placed: Placed[T] = dict.fromkeys(counts, ())

    def add(one: T, count: int, among: Collection[Core]) -> None:
        got = take(sorted(among, key=attrgetter("cpus")), count, placed[one] or held.get(one, ()))
        placed[one] += got
        left.difference_update(got)

    by_size = sorted(counts, key=lambda one: -counts[one])
    if is_staying:
        for one in counts:
            add(one, counts[one], left.intersection(held.get(one, ())))
    for one in sorted(by_size, key=lambda one: not placed[one]):
        add(one, counts[one] - len(placed[one]), left)
    return placed


def _place_counts(free: Sequence[Core], weights: Mapping[T, float], counts: Sequence[int], held: Mapping[T, Sequence[Core]]) -> Placed[T]:
    return place(free, dict(zip(weights, counts, strict=True)), held)


def _nudged(counts: Sequence[int], exact: Sequence[float]) -> Iterator[list[int]]:
    """The same counts with one core less for somebody above its exact share, and one more for somebody below."""
    above = [index for index, count in enumerate(counts) if count > exact[index] + ALMOST]
    below = [index for index, count in enumerate(counts) if count < exact[index] - ALMOST]
    for loser, winner in product(above, below):
        nudged = list(counts)
        nudged[loser] -= 1
        nudged[winner] += 1
        yield nudged


def _node_count(placed: Placed[T]) -> int:
    return sum(len({core.node for core in cores}) for cores in placed.values())
