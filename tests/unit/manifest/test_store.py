"""The last good manifest survives, or is refused with a reason."""

import json
import os
import resource
from collections.abc import Callable
from pathlib import Path

import pytest

from axiond.errors import StoreError
from axiond.manifest.load import parse
from axiond.manifest.spec import Manifest
from axiond.manifest.store import LastGood, Stored, state_folder

ORIGIN = Path("/conf/a.toml")
TEXT = b"""
[server]
api_keys = ["hunter2", "b"]
admin_socket = "s"
[models."q2.5"]
source = "./m"
cores = ["0", "1"]
kv_cache = "128MiB"
lora = {l = "x"}
[models."q2.5".golden]
prompt = "p"
expect = "e"
[models."q2.5".engine_args]
a = {b = [1, 2.5, true, "x"]}
[[routes]]
name = "r"
models = [{model = "q2.5"}]
"""


@pytest.fixture
def manifest() -> Manifest:
    return parse(TEXT, ORIGIN, {}).manifest


@pytest.fixture
def store(tmp_path: Path) -> LastGood:
    return LastGood(tmp_path / "state", ORIGIN)


def test_what_was_saved_comes_back_whole(store: LastGood, manifest: Manifest) -> None:
    """Secrets are real, and the digests are the same: a restart replaces no engine."""
    store.save(manifest, 7, "etag")
    stored, reason = store.load()
    assert (stored, reason) == (Stored(manifest, 7, "etag"), "")
    assert stored is not None
    assert [key.get_secret_value() for key in stored.manifest.server.api_keys] == ["hunter2", "b"]
    assert stored.manifest.models["q2.5"].digest() == manifest.models["q2.5"].digest()


def test_only_its_owner_can_read_it_and_nothing_else_is_left(store: LastGood, manifest: Manifest) -> None:
    store.save(manifest, 1, "a")
    store.save(manifest, 2, "b")
    assert [path.name for path in store.path.parent.iterdir()] == [store.path.name]
    assert store.path.stat().st_mode & 0o777 == 0o600
    assert store.path.parent.stat().st_mode & 0o777 == 0o700


def test_nothing_stored_is_no_reason_to_complain(store: LastGood) -> None:
    assert store.load() == (None, "")


def test_each_manifest_path_has_its_own(tmp_path: Path, manifest: Manifest) -> None:
    LastGood(tmp_path, Path("/a.toml")).save(manifest, 1, "a")
    assert LastGood(tmp_path, Path("/b.toml")).load() == (None, "")


def edit(change: Callable[[dict[str, object]], object]) -> Callable[[Path], object]:
    def apply(path: Path) -> None:
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))

    return apply


DAMAGE = {
    "cut": (lambda path: path.write_bytes(path.read_bytes()[:-9]), "is damaged"),
    "empty": (lambda path: path.write_text(""), "is damaged"),
    "binary": (lambda path: path.write_bytes(b"\xff\0"), "is damaged"),
    "list": (lambda path: path.write_text("[]"), "is damaged"),
    "deep": (lambda path: path.write_text("[" * 100_000), "is damaged"),
    "future": (edit(lambda content: content.update(format=2)), "has format 2, written by another version of axiond; this one reads 1"),
    "unknown field": (edit(lambda content: content.update(manifest={"models": {"a": {"source": "x", "new": 1}}})), "models.a.new"),
    "no manifest": (edit(lambda content: content.pop("manifest")), "is damaged"),
    "folder": (lambda path: (path.unlink(), path.mkdir()), "is a folder, not a file"),
    "dangling": (lambda path: (path.unlink(), path.symlink_to("gone")), "does not exist"),
}


@pytest.mark.parametrize(("damage", "expected"), DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_store_is_none_and_a_reason(store: LastGood, manifest: Manifest, damage: Callable[[Path], object], expected: str) -> None:
    store.save(manifest, 1, "etag")
    damage(store.path)
    stored, reason = store.load()
    assert stored is None
    assert reason.startswith(str(store.path))
    assert expected in reason
    assert "hunter2" not in reason


def test_every_cut_is_refused(store: LastGood, manifest: Manifest) -> None:
    store.save(manifest, 1, "etag")
    whole = store.path.read_bytes()
    for end in range(0, len(whole), 7):
        store.path.write_bytes(whole[:end])
        assert store.load()[0] is None


def test_a_save_that_fails_keeps_what_was_stored(store: LastGood, manifest: Manifest) -> None:
    store.save(manifest, 1, "good")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        with pytest.raises(StoreError, match="cannot be written: File too large"):
            store.save(manifest, 2, "bad")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert store.load()[0] == Stored(manifest, 1, "good")
    assert os.listdir(store.path.parent) == [store.path.name]  # noqa: PTH208


def test_a_folder_that_cannot_be_is_an_error_of_ours(tmp_path: Path, manifest: Manifest) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError):
        LastGood(tmp_path / "file", ORIGIN).save(manifest, 1, "etag")


FOLDERS = {
    "systemd": ({"STATE_DIRECTORY": "/var/lib/axiond:/x", "HOME": "/h"}, "/var/lib/axiond"),
    "user": ({"XDG_STATE_HOME": "/s", "HOME": "/h"}, "/s/axiond"),
    "home": ({"HOME": "/h"}, "/h/.local/state/axiond"),
}


@pytest.mark.parametrize(("environ", "expected"), FOLDERS.values(), ids=FOLDERS)
def test_the_state_folder_is_known_before_any_manifest(environ: dict[str, str], expected: str) -> None:
    assert state_folder(environ) == Path(expected)
