from hypothesis import given
from hypothesis import strategies as st

from axiond.routing.sticky import digest, share_of

ANY_TEXT = st.text(st.characters())


@given(ANY_TEXT, ANY_TEXT)
def test_everybody_has_one_place(label: str, identity: str) -> None:
    assert 0 <= share_of(label, identity) == share_of(label, identity) < 1
    assert digest(identity) == digest(identity)


def test_places_are_spread_evenly() -> None:
    """Chi-square over 20 cells of 10,000: 43.8 is the limit that chance passes once in 1000 times; these are no chance."""
    cells = [0] * 20
    for number in range(10_000):
        cells[int(share_of("route", f"conversation {number}") * 20)] += 1
    assert sum((count - 500) ** 2 / 500 for count in cells) < 43.8


def test_a_label_and_an_identity_do_not_run_together() -> None:
    assert share_of("a", "bc") != share_of("ab", "c")


def test_half_a_surrogate_pair_has_a_place_too() -> None:
    assert share_of("\udc80", "\ud800") != share_of("\udc80", "\ud801")
    assert digest("\udc80") != digest("\udc81")


def test_nobody_has_no_digest() -> None:
    assert digest("") == ""
    assert digest("a") != digest("b")
