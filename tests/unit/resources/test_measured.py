"""What is remembered of engines across restarts."""

import json

import pytest

from axiond.resources.measured import FILE, MOST_DIGESTS, NEVER, Measured, MeasuredStore

SEEN = Measured(ready_bytes=5, load_peak_bytes=7, most_bytes=6, load_s=3.5)


def test_what_was_put_is_there_after_a_restart(tmp_path):
    store = MeasuredStore(tmp_path / "made" / "for it")
    store.put("a", SEEN)
    store.save()
    assert MeasuredStore(tmp_path / "made" / "for it").get("a") == SEEN
    assert store.get("b") == NEVER


def test_only_so_many_are_remembered_and_the_oldest_go(tmp_path):
    store = MeasuredStore(tmp_path)
    for index in range(MOST_DIGESTS + 10):
        store.put(f"d{index}", SEEN)
    store.save()
    again = MeasuredStore(tmp_path)
    assert again.get("d9") == NEVER
    assert again.get("d10") == SEEN


@pytest.mark.parametrize(
    "text",
    [
        "", "{", "[]", "\xff", '{"format": 99, "engines": {"a": {"ready_bytes": 5}}}', '{"format": 1, "engines": []}',
        '{"format": 1, "engines": {"a": 3}}', '{"format": 1, "engines": {"a": {"ready_bytes": -5, "load_s": "soon", "most_bytes": true}}}',
    ],
)  # fmt: skip
def test_a_broken_file_is_as_none_and_is_replaced(tmp_path, text):
    (tmp_path / FILE).write_text(text)
    store = MeasuredStore(tmp_path)
    assert store.get("a") == NEVER
    store.put("a", SEEN)
    store.save()
    assert MeasuredStore(tmp_path).get("a") == SEEN


def test_nothing_is_written_when_nothing_changed(tmp_path):
    store = MeasuredStore(tmp_path)
    store.save()
    assert not (tmp_path / FILE).exists()
    store.put("a", SEEN)
    store.save()
    (tmp_path / FILE).unlink()
    store.put("a", SEEN)
    store.save()
    assert not (tmp_path / FILE).exists()


def test_a_start_forgets_what_the_last_life_grew_to_and_smooths_the_time():
    first = NEVER.after_start(ready_bytes=100, load_peak_bytes=90, load_s=10.0)
    assert first == Measured(100, 100, 100, 10.0)
    grown = first.after_sample(500).after_sample(300)
    assert grown.most_bytes == 500
    again = grown.after_start(ready_bytes=110, load_peak_bytes=130, load_s=20.0)
    assert again == Measured(110, 130, 110, 17.0)


def test_the_file_is_for_people_too(tmp_path):
    store = MeasuredStore(tmp_path)
    store.put("a", SEEN)
    store.save()
    assert json.loads((tmp_path / FILE).read_text())["engines"]["a"]["load_s"] == 3.5
