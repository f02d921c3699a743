"""Quality of answers against waiting, with and without residency: the simulation of bench/auto.py, small."""

from itertools import pairwise

import pytest

from axiond.manifest.spec import Auto
from bench.auto import GAPS_S, WEIGHTS, frontier


@pytest.mark.parametrize("gap_s", GAPS_S)
def test_each_weight_buys_shorter_waits_with_quality(gap_s: float) -> None:
    off, *on = frontier(gap_s, count=1000)
    assert not off.residency
    until_default = [off, *on[: WEIGHTS.index(Auto().wait) + 1]]
    for before, after in pairwise(until_default):
        assert after.mean_wait_s < before.mean_wait_s
        assert after.p99_wait_s <= before.p99_wait_s
        assert after.loads < before.loads
        assert after.quality < before.quality


@pytest.mark.parametrize("gap_s", GAPS_S)
def test_the_default_weight_waits_a_fifth_and_keeps_most_of_the_quality(gap_s: float) -> None:
    off, *on = frontier(gap_s, count=1000)
    default = on[WEIGHTS.index(Auto().wait)]
    assert default.mean_wait_s < off.mean_wait_s / 5
    assert default.quality > 0.85 * off.quality
