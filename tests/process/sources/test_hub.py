import asyncio
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from axiond.errors import SourceError
from tests.fakes.hub import COMMIT, REPO, FakeHub
from tests.fakes.sources import CONFIG, Fetcher, workers

WEIGHTS = np.random.default_rng(0).bytes(40_000_000)
PIECE_BYTES = 10 * 2**20  # huggingface_hub writes pieces of this size; a piece that was cut is asked for again
NEEDED = {"config.json": CONFIG, "tokenizer.json": b"{}", "model.safetensors": WEIGHTS}
FILES = {**NEEDED, "pytorch_model.bin": bytes(200_000), "README.md": b"#"}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    fake = FakeHub(FILES)
    for name in ("HF_TOKEN", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    with ExitStack() as stack:
        monkeypatch.setenv("HF_ENDPOINT", stack.enter_context(fake.serve()))
        yield fake


async def test_downloads_what_vllm_needs(hub: FakeHub, fetcher: Fetcher) -> None:
    resolved = await fetcher(REPO)
    assert {path.name for path in resolved.folder.iterdir()} == NEEDED.keys()
    assert (resolved.folder / "model.safetensors").read_bytes() == WEIGHTS
    assert (resolved.weight_bytes, resolved.note) == (len(WEIGHTS), "")
    assert fetcher.stages == ["looking up", "downloading", "verifying"]
    assert max(progress.total_bytes for progress in fetcher.told) == sum(map(len, NEEDED.values()))


async def test_a_commit_that_is_here_needs_no_network(hub: FakeHub, fetcher: Fetcher) -> None:
    first = await fetcher(REPO, COMMIT)
    hub.asked.clear()
    assert await fetcher(REPO, COMMIT) == first
    assert hub.asked == {}


async def test_a_branch_that_is_here_is_only_looked_up(hub: FakeHub, fetcher: Fetcher) -> None:
    first = await fetcher(REPO)
    hub.asked.clear()
    assert await fetcher(REPO, "main") == first
    assert hub.asked["file"] == 0


async def test_a_branch_that_moved_is_downloaded_again(hub: FakeHub, fetcher: Fetcher) -> None:
    first = await fetcher(REPO)
    hub.commit, hub.files = 40 * "b", {**FILES, "config.json": b'{"model_type": "llama", "moved": true}'}
    second = await fetcher(REPO)
    assert second.folder != first.folder
    assert b"moved" in (second.folder / "config.json").read_bytes()
    assert max(progress.total_bytes for progress in fetcher.told) < len(WEIGHTS)  # which did not change


async def test_resumes_after_a_cut_connection(hub: FakeHub, fetcher: Fetcher) -> None:
    """Within one fetch the download goes on where it broke off."""
    hub.cut_after_bytes, hub.cuts = 2 * PIECE_BYTES + 1, 1
    resolved = await fetcher(REPO)
    assert (resolved.folder / "model.safetensors").read_bytes() == WEIGHTS
    assert [value for value in hub.ranges if value != "bytes=0-"] == [f"bytes={2 * PIECE_BYTES}-"]


async def test_a_server_that_goes_away(hub: FakeHub, fetcher: Fetcher) -> None:
    """What arrived whole is kept, and only the rest is asked for at the next try."""
    hub.cuts = 100
    with pytest.raises(SourceError, match="the download broke off"):
        await fetcher(REPO)
    assert fetcher.half_made() == []
    hub.cuts = 0
    resolved = await fetcher(REPO)
    assert (resolved.folder / "model.safetensors").read_bytes() == WEIGHTS
    assert max(progress.total_bytes for progress in fetcher.told) == len(WEIGHTS)


async def test_without_network_the_copy_here_is_used_with_a_note(hub: FakeHub, fetcher: Fetcher, monkeypatch: pytest.MonkeyPatch) -> None:
    first = await fetcher(REPO)
    hub.refuse = (503, "")
    second = await fetcher(REPO)
    assert (second.folder, second.weight_bytes) == (first.folder, first.weight_bytes)
    assert "answers 503; the copy downloaded before is used" in second.note
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    assert "cannot be reached" in (await fetcher(REPO)).note
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert (await fetcher(REPO)).folder == first.folder


@pytest.mark.parametrize(
    ("refuse", "said"),
    [
        pytest.param((404, "RepoNotFound"), "no such repository.*set HF_TOKEN", id="404"),
        pytest.param((401, ""), "set HF_TOKEN", id="401"),
        pytest.param((403, "GatedRepo"), "gated: accept its terms at http://.*/acme/tiny and set HF_TOKEN", id="gated"),
        pytest.param((500, ""), "answers 500", id="500"),
    ],
)
async def test_refused(refuse: tuple[int, str], said: str, hub: FakeHub, fetcher: Fetcher) -> None:
    hub.refuse = refuse
    with pytest.raises(SourceError, match=said):
        await fetcher(REPO)


async def test_unknown_names(hub: FakeHub, fetcher: Fetcher) -> None:
    with pytest.raises(SourceError, match="no such repository"):
        await fetcher("acme/other")
    with pytest.raises(SourceError, match='no revision "v9"'):
        await fetcher(REPO, "v9")


async def test_a_token_that_may_not(hub: FakeHub, fetcher: Fetcher, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    hub.refuse = (401, "")
    with pytest.raises(SourceError, match="HF_TOKEN is set, but may not read it"):
        await fetcher(REPO)


async def test_no_hub_there(fetcher: Fetcher, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    with pytest.raises(SourceError, match=r"http://127.0.0.1:1 cannot be reached"):
        await fetcher(REPO)


async def test_offline_by_choice(fetcher: Fetcher, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(SourceError, match="HF_HUB_OFFLINE is set"):
        await fetcher(REPO)


@pytest.mark.parametrize(
    ("files", "said"),
    [
        pytest.param({"README.md": b"#"}, "holds no config.json", id="empty"),
        pytest.param({"m.gguf": b"GGUF"}, "holds GGUF files", id="gguf"),
    ],
)
async def test_a_repository_that_is_no_model(files: dict[str, bytes], said: str, hub: FakeHub, fetcher: Fetcher) -> None:
    hub.files = files
    with pytest.raises(SourceError, match=said):
        await fetcher(REPO)


async def test_damaged_on_the_way(hub: FakeHub, fetcher: Fetcher) -> None:
    """What does not match the hub's sum is not kept; the next try downloads it again."""
    hub.is_damaged = True
    with pytest.raises(SourceError, match=r"model.safetensors arrived damaged"):
        await fetcher(REPO)
    hub.is_damaged = False
    assert ((await fetcher(REPO)).folder / "model.safetensors").read_bytes() == WEIGHTS


async def test_cancelled(hub: FakeHub, fetcher: Fetcher) -> None:
    """No child and no part of a file is left; what had arrived whole is kept for the next try."""
    hub.is_held = True
    task = asyncio.create_task(fetcher(REPO))
    assert await asyncio.to_thread(hub.held.wait, 30)
    assert fetcher.half_made() != []
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert workers() == []
    assert fetcher.half_made() == []
    hub.is_held = False
    assert ((await fetcher(REPO)).folder / "model.safetensors").read_bytes() == WEIGHTS


async def test_disk_full(hub: FakeHub, tmp_path: Path) -> None:
    """The size is known before the first byte is asked for."""
    hub.claimed_bytes = 2**60
    with pytest.raises(SourceError, match=r"needs 1073741824\.\d\d GiB .* are free"):
        await Fetcher(tmp_path / "state")(REPO)
    assert hub.asked["file"] == 0
