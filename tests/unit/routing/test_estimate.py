import heapq
import random
import statistics
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from axiond.routing.estimate import ServiceTimes, Spread, wait_s


def spread(*seconds: float) -> Spread:
    measured = Spread()
    for each in seconds:
        measured.note(each)
    return measured


REGULAR, IRREGULAR = spread(10, 10, 10), spread(*[0.01] * 9, 100)


@pytest.mark.parametrize(
    ("position", "slots", "ages_s", "service", "ready_in_s", "wait"),
    [
        pytest.param(1, 2, [1], None, 0.0, 0.0, id="room-needs-no-measurement"),
        pytest.param(1, 1, [1], None, 0.0, None, id="full-and-nothing-measured"),
        pytest.param(1, 1, [4], REGULAR, 0.0, 6.0, id="the-one-that-runs-ends"),
        pytest.param(3, 1, [4], REGULAR, 0.0, 26.0, id="two-more-before"),
        pytest.param(2, 2, [9, 2], REGULAR, 0.0, 8.0, id="the-second-to-end"),
        pytest.param(5, 2, [9, 2], REGULAR, 0.0, 21.0, id="after-two-rounds"),
        pytest.param(1, 1, [99], REGULAR, 0.0, 0.0, id="overdue"),
        pytest.param(2, 1, [7, 1], REGULAR, 0.0, 19.0, id="more-run-than-may"),
        pytest.param(2, 2, [], None, 30.0, 30.0, id="a-load-needs-no-service-times"),
        pytest.param(3, 2, [], REGULAR, 30.0, 40.0, id="behind-the-first-after-a-load"),
        pytest.param(3, 2, [], None, 30.0, None, id="behind-the-first-and-nothing-measured"),
        pytest.param(1, 2, [], REGULAR, None, None, id="a-load-never-measured"),
        pytest.param(1, 4, [5, 5, 5, 5], IRREGULAR, 0.0, IRREGULAR.mean_s / 4, id="age-tells-nothing"),
        pytest.param(6, 4, [5, 5, 5, 5], IRREGULAR, 0.0, IRREGULAR.mean_s * 6 / 4, id="six-quarters"),
    ],
)
def test_wait(position: int, slots: int, ages_s: list[float], service: Spread | None, ready_in_s: float | None, wait: float | None) -> None:
    assert wait_s(position, slots, ages_s, service, ready_in_s) == (wait if wait is None else pytest.approx(wait))


@given(
    st.integers(1, 300), st.integers(1, 40), st.lists(st.floats(0, 1e3), max_size=50), st.lists(st.floats(0, 1e3), min_size=1, max_size=9)
)
def test_a_wait_is_never_negative_and_never_shorter_further_behind(
    position: int, slots: int, ages_s: list[float], seconds: list[float]
) -> None:
    here = wait_s(position, slots, ages_s, spread(*seconds))
    behind = wait_s(position + 1, slots, ages_s, spread(*seconds))
    assert here is not None
    assert behind is not None
    assert 0 <= here <= behind + 1e-6


@given(st.lists(st.floats(0, 1e4), min_size=1, max_size=10))
def test_the_first_ten_count_alike(seconds: list[float]) -> None:
    measured = spread(*seconds)
    assert measured.mean_s == pytest.approx(statistics.fmean(seconds), abs=1e-6)
    assert measured.variance_s2 == pytest.approx(statistics.pvariance(seconds), rel=1e-6, abs=1e-3)


def test_a_change_of_speed_is_followed() -> None:
    measured = spread(*[1.0] * 1000, *[5.0] * 30)
    assert measured.mean_s == pytest.approx(5, rel=0.05)


@pytest.mark.parametrize(("asked", "mean_s"), [(1, 1.0), (2, 1.0), (4, 3.0), (7, 3.0), (100, 3.0)])
def test_times_are_those_of_the_nearest_load(asked: int, mean_s: float) -> None:
    times = ServiceTimes()
    times.note(1.0, 1)
    times.note(3.0, 5)
    measured = times.at(asked)
    assert measured is not None
    assert measured.mean_s == mean_s


def test_nothing_measured_is_nothing_known() -> None:
    assert ServiceTimes().at(3) is None


def simulate(draw_s: Callable[[], float], slots: int, seed: int, requests: int = 3000) -> list[float]:
    """Poisson arrivals at 0.97 of what the engines can do; how far each wait was from its estimate, as a share of the wait."""
    chance = random.Random(seed)
    mean_s = statistics.fmean(draw_s() for _ in range(20_000))
    times, running, queue, errors, now = ServiceTimes(), list[tuple[float, float]](), list[tuple[float, float | None]](), list[float](), 0.0
    arrivals, came_s = 0, 0.0
    while arrivals < requests:
        if running and running[0][0] <= came_s:
            now, began_s = heapq.heappop(running)
            times.note(now - began_s, slots)
            if queue:
                asked_s, told_s = queue.pop(0)
                if told_s is not None and arrivals > requests / 10:
                    errors.append(abs(told_s - (now - asked_s)) / (now - asked_s))
                heapq.heappush(running, (now + draw_s(), now))
            continue
        now, arrivals = came_s, arrivals + 1
        if len(running) < slots:
            heapq.heappush(running, (now + draw_s(), now))
        else:
            queue.append((now, wait_s(len(queue) + 1, slots, [now - began_s for _, began_s in running], times.at(slots))))
        came_s += chance.expovariate(0.97 * slots / mean_s)
    return errors


SERVICE: dict[str, Callable[[random.Random], Callable[[], float]]] = {
    "same-length": lambda chance: lambda: 4.0,
    "a-fifth-more-or-less": lambda chance: lambda: chance.uniform(3.2, 4.8),
    "half-to-double": lambda chance: lambda: chance.uniform(2.0, 8.0),
    "two-kinds": lambda chance: lambda: chance.choice((1.0, 8.0)),
    "memoryless": lambda chance: lambda: chance.expovariate(0.25),
}


MOST = {"same-length": 1e-6, "a-fifth-more-or-less": 0.15, "half-to-double": 0.2, "two-kinds": 0.3, "memoryless": 0.3}


@pytest.mark.parametrize("slots", [1, 4, 32])
@pytest.mark.parametrize("kind", SERVICE)
def test_estimates_come_true(kind: str, slots: int) -> None:
    """The median error is nothing for regular requests, 5 to 12 % for a fifth more or less, and at most 24 % for the others."""
    errors = simulate(SERVICE[kind](random.Random(7)), slots, seed=11)
    assert len(errors) > 300
    assert statistics.median(errors) < MOST[kind]
