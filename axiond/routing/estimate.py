"""How long a request will wait, from how long others took. Pure; what was not measured is not estimated."""

from collections.abc import Collection
from dataclasses import dataclass

SLOWEST_WEIGHT = 0.1  # of a new measurement: what matters is about the last twenty


@dataclass(slots=True)
class Spread:
    """Mean and variance that follow what is measured; the first measurements count alike."""

    mean_s: float = 0.0
    variance_s2: float = 0.0
    count: int = 0

    def note(self, seconds: float) -> None:
        self.count += 1
        weight = max(1 / self.count, SLOWEST_WEIGHT)
        off = seconds - self.mean_s
        self.mean_s += weight * off
        self.variance_s2 = (1 - weight) * (self.variance_s2 + weight * off * off)

    @property
    def irregularity(self) -> float:
        """Squared coefficient of variation: 0 when all take the same time, 1 when the time gone by tells nothing, and no more."""
        return 1.0 if self.variance_s2 >= self.mean_s**2 else self.variance_s2 / self.mean_s**2


class ServiceTimes:
    """Seconds that requests occupied an engine, apart for 1, 2 to 3, 4 to 7, ... of them in it at a time."""

    def __init__(self) -> None:
        self._by_load: dict[int, Spread] = {}

    def note(self, seconds: float, concurrency: int) -> None:
        measured = self._by_load.get(concurrency.bit_length())
        if measured is None:
            measured = self._by_load[concurrency.bit_length()] = Spread()
        measured.note(seconds)

    def at(self, concurrency: int) -> Spread | None:
        """What was measured nearest to *concurrency*, with fewer rather than more; None when nothing was."""
        load = concurrency.bit_length()
        nearest = min(self._by_load, key=lambda found: (abs(found - load), found), default=None)
        return None if nearest is None else self._by_load[nearest]


def wait_s(position: int, slots: int, ages_s: Collection[float], service: Spread | None, ready_in_s: float | None = 0.0) -> float | None:
    """
    Estimate how long the request at *position* waits; None when what it hangs on was never measured.

    Args:
        position: 1 is the next.
        slots: requests that the engines take at a time.
        ages_s: how long each running request has been running.
        service: what requests take when the engines are full.
        ready_in_s: until the engines take any; below 0 when that is overdue.

    Regular requests end one after another, each when it is as old as its like become. Of irregular ones the age tells
    nothing, but *slots* of them end in the time that one takes. What lies between is weighted.
    """
    free = slots - len(ages_s)
    if ready_in_s is None or ready_in_s < 0:
        return None
    if position <= free:
        return ready_in_s
    if service is None:
        return None
    mean_s, behind = service.mean_s, position - 1
    ends_s = [0.0] * free + sorted(max(0.0, mean_s - age_s) for age_s in ages_s)[-slots:]
    regular_s = ends_s[behind % slots] + behind // slots * mean_s
    irregular_s = (position - free) * mean_s / slots
    return ready_in_s + irregular_s + (1 - service.irregularity) * (regular_s - irregular_s)
