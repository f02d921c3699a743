import io
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from rich.console import Console, RenderableType

from axiond.render import cpus_view, duration, event_line, exit_code, plan_sentence, plan_view, route_view, status_view
from axiond.report import Condition, ConditionType, Event, FieldChange, ModelChange, PlanReport
from tests.fakes.reports import busy_plan, condition, cpus, explained, healthy, refused, rolled_back, with_kernels

NOW = datetime(2026, 1, 2, 12, 0, tzinfo=UTC)
GOLDEN = Path(__file__).parents[1] / "golden"
KEYWORDS = [f"keyword {number}" for number in range(30)]


def as_text(view: RenderableType) -> str:
    """As it looks 120 columns wide without colour, on the console the CLI uses."""
    out = io.StringIO()
    Console(file=out, width=120, markup=False, emoji=False, highlight=False).print(view)
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()) + "\n"


@pytest.mark.parametrize(
    ("name", "view"),
    [
        ("status_healthy", status_view(healthy(NOW), NOW)),
        ("status_rolled_back", status_view(rolled_back(NOW), NOW)),
        ("status_kernels", status_view(with_kernels(NOW), NOW, with_kernels=True)),
        ("plan_busy", plan_view(busy_plan())),
        ("cpus", cpus_view(cpus(NOW))),
        ("route_explained", route_view(explained())),
        ("route_refused", route_view(refused())),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_golden(name: str, view: RenderableType) -> None:
    """What people see, character for character. AXIOND_GOLDEN=write accepts what is rendered now."""
    path = GOLDEN / f"{name}.txt"
    if os.environ.get("AXIOND_GOLDEN") == "write":
        path.write_text(as_text(view))
    assert as_text(view) == path.read_text()


@pytest.mark.parametrize(
    ("old", "new", "shown"),
    [
        (["a"], ["a", "b"], '["a"] -> ["a", "b"]'),
        (KEYWORDS, [*KEYWORDS, "b"], '30 entries -> 31 entries, new: ["b"]'),
        (KEYWORDS, ["b", *KEYWORDS[1:]], '30 entries, gone: ["keyword 0"] -> 30 entries, new: ["b"]'),
        (KEYWORDS, KEYWORDS[::-1], '["keyword 0", "keyword 1", "keyword 2", '),
    ],
    ids=["short", "one more", "another", "order"],
)
def test_of_a_long_list_the_difference_is_shown(old: list[str], new: list[str], shown: str) -> None:
    field = FieldChange(path="domains.code.keywords", old=old, new=new, change="live")
    assert shown in " ".join(as_text(plan_view(PlanReport(generation=1, models=(), domains=(field,)))).split())


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(-3, "0s"), (0.9, "0s"), (59, "59s"), (60, "1m00s"), (3599, "59m59s"), (3600, "1h00m"), (11220, "3h07m"), (187200, "2d04h")],
)
def test_duration(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def _conditions(**statuses: str) -> tuple[Condition, ...]:
    return tuple(condition(ConditionType(name), status, "Any", NOW) for name, status in statuses.items())


@pytest.mark.parametrize(
    ("conditions", "code"),
    [
        ({"Ready": "True"}, 0),
        ({"Ready": "True", "Degraded": "False", "RolledBack": "False", "Progressing": "True"}, 0),
        ({"Ready": "Unknown"}, 2),
        ({}, 2),
        ({"Ready": "True", "Degraded": "True"}, 2),
        ({"Ready": "True", "RolledBack": "True"}, 2),
        ({"Ready": "True", "Accepted": "False"}, 2),
    ],
)
def test_exit_code(conditions: dict[str, str], code: int) -> None:
    assert exit_code(healthy(NOW).model_copy(update={"conditions": _conditions(**conditions)})) == code


@pytest.mark.parametrize(
    ("plan", "sentence"),
    [
        (PlanReport(generation=1, models=()), "Nothing to do: what runs is what the manifest says."),
        (
            PlanReport(generation=1, models=(ModelChange(model="a", verdict="none"),)),
            "Nothing to do: what runs is what the manifest says.",
        ),
        (
            PlanReport(generation=1, models=tuple(ModelChange(model=name, verdict="live") for name in "ab")),
            "Plan: 2 changed live.",
        ),
        (
            busy_plan(),
            "Plan: 1 to load, 1 to restart, 1 to unload, 1 unchanged, server settings changed, routes changed,"
            " domains changed, scores changed."
            " Some settings take effect when axiond itself restarts.",
        ),
    ],
    ids=["empty", "unchanged", "live", "everything"],
)
def test_plan_sentence(plan: PlanReport, sentence: str) -> None:
    assert plan_sentence(plan) == sentence


def test_long_tails_and_reasons_are_shortened() -> None:
    """A Python traceback of fifty lines and vLLM's longest sentence leave the tables readable."""
    found = rolled_back(NOW)
    assert found.rejection
    long = found.rejection.model_copy(update={"tail": tuple(f"line {number}" for number in range(25))})
    bad = found.conditions[0].model_copy(update={"message": "x" * 500})
    text = as_text(status_view(found.model_copy(update={"rejection": long, "conditions": (bad,)}), NOW))
    assert "  … 15 lines before, in axiond status --json\n  line 15\n" in text
    assert "  line 24\n" in text
    assert "line 14\n" not in text
    assert text.count("x") < 250


def test_kernels_are_shown_when_asked_for_and_their_problems_always() -> None:
    text = as_text(status_view(with_kernels(NOW), NOW))
    assert "rms_norm" not in text
    assert "Kernels of chat@0123456789ab#1:" in text


def test_event_line() -> None:
    """Line breaks and long values stay on one line."""
    event = Event(time=NOW + timedelta(seconds=5), name="engine.exited", fields={"key": "a@b", "tail": "x\ny", "long": "z" * 100})
    assert event_line(event).plain == f"12:00:05 engine.exited key=a@b tail=x y long={'z' * 59}…"


def test_requests_by_route_are_one_line() -> None:
    status = healthy(NOW).model_copy(update={"routes": {"": 3, "code": 1200, "law": 3}})
    assert "\nRequests by route: code 1,200, (by name) 3, law 3\n" in as_text(status_view(status, NOW))
