from pathlib import Path

import pytest

from axiond.errors import SourceError
from axiond.sources import cache


def test_sweeping_spares_what_is_being_made(tmp_path: Path) -> None:
    """The lock tells: while it is held the parts stay, whoever sweeps."""
    target = cache.models_dir(tmp_path, "gguf") / "abc"
    with cache.hold(target) as scratch:
        cache.sweep(tmp_path)
        assert scratch.is_dir()
    assert not scratch.exists()


def test_sweeping_removes_what_nobody_makes(tmp_path: Path) -> None:
    """Parts whose worker was killed, of a kind that axiond names and of the kind that huggingface_hub names."""
    for kind in ("gguf", "hub"):
        target = cache.models_dir(tmp_path, kind) / "abc"
        with cache.hold(target):
            pass
        cache.partial(target).mkdir()
        (target / "blobs").mkdir(parents=True)
        (target / "blobs/whole").touch()
        (target / "blobs/part.0123.incomplete").touch()
    cache.sweep(tmp_path)
    assert sorted(str(path.relative_to(tmp_path / "models")) for path in tmp_path.rglob("*") if path.is_file()) == [
        "gguf/abc.lock", "gguf/abc/blobs/whole", "hub/abc.lock", "hub/abc/blobs/whole",
    ]  # fmt: skip
    assert list(tmp_path.rglob("*.partial")) == []


def test_who_waits_says_so(tmp_path: Path) -> None:
    """Only where the lock is held by another."""
    said: list[str] = []
    target = tmp_path / "abc"
    with cache.hold(target, lambda: said.append("waits")):
        assert said == []

    class Refused(Exception):
        pass

    def refuse() -> None:
        raise Refused

    with cache.hold(target), pytest.raises(Refused), cache.hold(target, refuse):
        pass


def test_put_in_place(tmp_path: Path) -> None:
    made = tmp_path / "abc.partial" / "model"
    (made / "sub").mkdir(parents=True)
    (made / "sub/file").write_text("whole")
    cache.put_in_place(made, tmp_path / "deep" / "abc")
    assert (tmp_path / "deep/abc/sub/file").read_text() == "whole"
    assert not made.exists()


def test_no_room(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"needs 1048576\.00 GiB in .*, but only \d+\.\d\d GiB are free"):
        cache.check_space("x", tmp_path, 2**50)


def test_sweeping_passes_over_what_it_may_not_open(tmp_path: Path) -> None:
    """A folder in a lock's place stands for any lock that another user owns."""
    target = cache.models_dir(tmp_path, "gguf") / "b"
    with cache.hold(target):
        pass
    cache.partial(target).mkdir()
    (target.parent / "a.lock").mkdir()
    (target.parent / "c.lock").mkdir()
    cache.sweep(tmp_path)
    assert not cache.partial(target).exists()
