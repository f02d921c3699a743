"""Worker: download the files of a Hugging Face repository that vLLM needs. Honours HF_ENDPOINT, HF_TOKEN and HF_HUB_OFFLINE."""

import contextlib
import glob
import hashlib
import os
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx2
from huggingface_hub import HfApi, constants, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import RepoFile

from axiond.errors import SourceError
from axiond.sources import cache, child
from axiond.sources.source import choose_files, is_commit

DEFAULT_REVISION = "main"
CHUNK_BYTES = 2**22


class HubUnreachable(SourceError):
    """The hub gave no answer about the repository; a local copy may do."""


def work(repo_id: str, revision: str, state_dir: str) -> dict[str, Any]:
    revision = revision or DEFAULT_REVISION
    repo = cache.models_dir(Path(state_dir), "hub") / f"models--{repo_id.replace('/', '--')}"
    with cache.hold(repo, child.report_waiting):
        if is_commit(revision) and (folder := finished(repo, revision)):
            return {"path": str(folder)}
        try:
            commit, files = look_up(repo_id, revision)
        except HubUnreachable as error:
            if folder := finished(repo, revision):
                return {"path": str(folder), "note": f"{error.problem}; the copy downloaded before is used"}
            raise
        folder = finished(repo, commit) or download(repo_id, commit, files, repo)
        remember(repo, revision, commit)
        return {"path": str(folder)}


def finished(repo: Path, revision: str) -> Path | None:
    """The folder of a revision that was downloaded whole."""
    record = repo / "finished" / quote(revision, safe="")
    folder = repo / "snapshots" / record.read_text() if record.exists() else None
    return folder if folder and folder.is_dir() else None


def remember(repo: Path, revision: str, commit: str) -> None:
    records = repo / "finished"
    records.mkdir(exist_ok=True)
    for name in (commit, quote(revision, safe="")):
        new = records / f"{name}.new"
        new.write_text(commit)
        new.rename(records / name)


def look_up(repo_id: str, revision: str) -> tuple[str, list[RepoFile]]:
    """Resolve a revision to its commit and the files worth downloading."""
    child.report("looking up")
    api = HfApi()
    try:
        commit = api.model_info(repo_id, revision=revision).sha
        assert commit
        tree = {entry.path: entry for entry in api.list_repo_tree(repo_id, recursive=True, revision=commit) if isinstance(entry, RepoFile)}
    except (HfHubHTTPError, httpx2.TransportError, OfflineModeIsEnabled) as exc:
        raise explain(repo_id, revision, exc) from exc
    files = [tree[name] for name in choose_files(tree)]
    if not any(file.path == "config.json" for file in files):
        hint = "; it holds GGUF files: download one and name its path" if any(name.endswith(".gguf") for name in tree) else ""
        raise SourceError(repo_id, f"the repository holds no config.json, so it is not a model that vLLM can open{hint}")
    return commit, files


def explain(repo_id: str, revision: str, error: Exception) -> SourceError:
    """Say what a hub's error means and what to do."""
    token = "HF_TOKEN is set, but may not read it" if os.environ.get("HF_TOKEN") else "if it is private, set HF_TOKEN"
    match error:
        case GatedRepoError():
            return SourceError(repo_id, f"the repository is gated: accept its terms at {constants.ENDPOINT}/{repo_id} and set HF_TOKEN")
        case RevisionNotFoundError():
            return SourceError(repo_id, f'the repository has no revision "{revision}"')
        case RepositoryNotFoundError():
            return SourceError(repo_id, f"no such repository at {constants.ENDPOINT}; {token}")
        case HfHubHTTPError(response=response) if response.status_code in (401, 403):
            return SourceError(repo_id, f"{constants.ENDPOINT} refused access ({response.status_code}); {token}")
        case HfHubHTTPError(response=response) if response.status_code < 500:
            return SourceError(repo_id, f"{constants.ENDPOINT} answered {response.status_code}: {error.args[0]}")
        case HfHubHTTPError(response=response):
            return HubUnreachable(repo_id, f"{constants.ENDPOINT} answers {response.status_code}")
        case OfflineModeIsEnabled():
            return HubUnreachable(repo_id, "HF_HUB_OFFLINE is set, and the repository has not been downloaded yet")
        case _:
            return HubUnreachable(repo_id, f"{constants.ENDPOINT} cannot be reached: {error}")


def download(repo_id: str, commit: str, files: list[RepoFile], repo: Path) -> Path:
    missing = [file for file in files if not blob(repo, file).exists()]
    total_bytes = sum(file.size for file in missing)
    repo.mkdir(exist_ok=True)
    cache.check_space(repo_id, repo, total_bytes)
    before_bytes = stored_bytes(repo)
    try:
        with child.progress("downloading", total_bytes, lambda: stored_bytes(repo) - before_bytes):
            patterns = [glob.escape(file.path) for file in files]
            folder = snapshot_download(repo_id, revision=commit, cache_dir=repo.parent, allow_patterns=patterns)
    except (HfHubHTTPError, httpx2.TransportError, LocalEntryNotFoundError) as exc:
        raise SourceError(repo_id, f"the download broke off, and goes on with what is here at the next try: {exc}") from exc
    verify(repo_id, missing, repo)
    return Path(folder)


def verify(repo_id: str, files: list[RepoFile], repo: Path) -> None:
    """Compare the big files with the sums that the hub tells; a file that differs is removed."""
    big = [file for file in files if file.lfs]
    done_bytes = 0
    with child.progress("verifying", sum(file.size for file in big), lambda: done_bytes):
        for file in big:
            digest = hashlib.sha256()
            with blob(repo, file).open("rb") as content:
                while chunk := content.read(CHUNK_BYTES):
                    digest.update(chunk)
                    done_bytes += len(chunk)
            if file.lfs and digest.hexdigest() != file.lfs.sha256:
                blob(repo, file).unlink()
                raise SourceError(repo_id, f"{file.path} arrived damaged (its SHA-256 differs from the hub's); it was removed, try again")


def blob(repo: Path, file: RepoFile) -> Path:
    return repo / "blobs" / (file.lfs.sha256 if file.lfs else file.blob_id)


def stored_bytes(repo: Path) -> int:
    total_bytes = 0
    for path in (repo / "blobs").glob("*"):
        with contextlib.suppress(FileNotFoundError):  # renamed from .incomplete just now
            total_bytes += path.stat().st_size
    return total_bytes


if __name__ == "__main__":
    child.run(work)
