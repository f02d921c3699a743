"""What waits for an import happens once, after it, and one at a time."""

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from axiond.kernels.imports import after_import


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Modules that nobody has imported: ax_one, and ax_two which is made of it."""
    (tmp_path / "ax_one.py").write_text("value = 1\n")
    (tmp_path / "ax_two.py").write_text("import ax_one\nvalue = ax_one.value + 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    before = list(sys.meta_path)
    yield
    assert sys.meta_path == before
    for name in ("ax_one", "ax_two"):
        sys.modules.pop(name, None)


def values() -> list[int | None]:
    return [getattr(sys.modules.get(name), "value", None) for name in ("ax_one", "ax_two")]


@pytest.mark.usefixtures("modules")
def test_it_happens_once_and_when_the_module_is_whole() -> None:
    seen: list[list[int | None]] = []
    after_import("ax_one", lambda: seen.append(values()))
    assert seen == []
    importlib.import_module("ax_one")
    importlib.reload(sys.modules["ax_one"])
    assert seen == [[1, None]]


@pytest.mark.usefixtures("modules")
def test_what_is_imported_already_is_not_waited_for() -> None:
    seen: list[int] = []
    importlib.import_module("ax_one")
    after_import("ax_one", lambda: seen.append(1))
    assert seen == [1]


@pytest.mark.usefixtures("modules")
def test_several_may_wait_for_one_module() -> None:
    seen: list[int] = []
    for number in (1, 2, 3):
        after_import("ax_one", lambda number=number: seen.append(number))
    importlib.import_module("ax_one")
    assert sorted(seen) == [1, 2, 3]


@pytest.mark.usefixtures("modules")
def test_what_an_action_imports_has_its_turn_after_it() -> None:
    said: list[str] = []

    def first() -> None:
        said.append("begins")
        importlib.import_module("ax_two")
        said.append("ends")

    after_import("ax_one", first)
    after_import("ax_two", lambda: said.append("second"))
    importlib.import_module("ax_one")
    assert said == ["begins", "ends", "second"]


@pytest.mark.usefixtures("modules")
def test_an_action_that_fails_fails_the_import_and_no_other() -> None:
    seen: list[int] = []

    def fail() -> None:
        raise ValueError("no")

    after_import("ax_one", fail)
    with pytest.raises(ValueError, match=r"^no$"):
        importlib.import_module("ax_one")
    after_import("ax_two", lambda: seen.append(2))
    importlib.import_module("ax_two")
    assert seen == [2]
