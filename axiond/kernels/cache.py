"""
Packed weights, kept from one start to the next: one file for each model and way of packing it.

The first start packs each layer, and writes them all when it is ready. Later starts map the file and do not read those tensors
of the checkpoint at all. So they are quick, and all of them share the memory.

A checkpoint is known by names, sizes and times of its files, to the nanosecond, and not by its bytes: reading those takes
longer than packing them. The time of the last change to the inode is among them, which no program that copies can set.
"""

import hashlib
import os
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import Module, Parameter

from axiond.kernels import active
from axiond.kernels.weightfile import NEW, Damaged, Reader, Writer, about, remove_remnant

FORMAT = 1  # of what is packed: it changes when native/linear/linear.h does
SUFFIX = ".packed"
LEAST_URGENT = 19
DISK_SHARE, DISK_FREE = 0.25, 0.05  # of the disk: what all files may take, and what has to stay free
WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".index.json")

Files = dict[str, list[int]]
Pack = Callable[[], Any]


class Session(Protocol):
    """One model being loaded."""

    def begin(self, model: Module) -> None:
        """The model is there, and its weights are about to be read."""

    def tables(self, tables: Mapping[str, Parameter]) -> None:
        """The weights are there. *tables* stay as they are, and are large."""

    def packed(self, layer: Module, parameters: Iterable[Any], pack: Pack) -> Any: ...

    def end(self) -> None:
        """The model is ready."""


_session: Session | None = None


@contextmanager
def session(new: Session | None) -> Iterator[None]:
    global _session
    before, _session = _session, new
    try:
        yield
        if new:
            new.end()
    finally:
        _session = before


def current() -> Session | None:
    return _session


def packed(layer: Module, parameters: Iterable[Any], pack: Pack) -> Any:
    """Return what *pack* makes of a layer's *parameters*, which nobody needs then; an earlier start may have made it."""
    return _session.packed(layer, parameters, pack) if _session else pack()


class Writing:
    """Packs, and when the model is ready writes what was packed, beside whatever else is done."""

    def __init__(self, writer: Writer, files: Files) -> None:
        self._writer, self._files = writer, files
        self._kept: list[tuple[str, Tensor, Any]] = []

    def begin(self, model: Module) -> None:
        self._names = {id(module): name for name, module in model.named_modules()}

    def tables(self, tables: Mapping[str, Parameter]) -> None:
        for name, parameter in tables.items():
            self._kept.append((name, parameter.data.view(torch.uint8).flatten(), {"parameters": described({name: parameter})}))

    def packed(self, layer: Module, parameters: Iterable[Any], pack: Pack) -> Any:
        rhs = pack()
        if (name := self._names.get(id(layer))) is None:  # it was made while the weights were read
            return rhs
        held = {
            f"{name}.{own}": each
            for own, each in layer._parameters.items()
            if each is not None and any(each is other for other in parameters)
        }
        self._kept.append((name, rhs.data, {"parameters": described(held), "arguments": rhs.arguments}))
        return rhs

    def end(self) -> None:
        active.tell(weights="packed at this start")
        threading.Thread(target=self._write, name="axiond-packed", daemon=True).start()

    def _write(self) -> None:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), LEAST_URGENT)
        try:
            for kept in self._kept:
                self._writer.add(*kept)
            self._writer.finish(self._files)
            active.tell(weights=f"packed at this start and kept, {self._writer.size >> 20} MiB")
        except OSError as exc:
            self._writer.abandon()
            active.tell(weights=f"packed at this start; not kept: {exc}")
        self._kept.clear()


class Reading:
    """Hands out what an earlier start has packed."""

    def __init__(self, path: Path, reader: Reader) -> None:
        self._path, self._reader = path, reader
        self._entries = reader.entries
        self._waiting = set(reader.entries)

    def begin(self, model: Module) -> None:
        self._names = {id(module): name for name, module in model.named_modules()}
        parameters = dict(model.named_parameters(remove_duplicate=False))
        expected = {name: what for entry in self._entries.values() for name, what in entry.about["parameters"].items()}
        if described({name: parameters[name] for name in expected if name in parameters}) != expected:
            active.say(f"{self._path} is not used: it is of another model")
            self._path.unlink(missing_ok=True)
            self._entries, self._waiting = {}, set()
            return
        for name in expected:
            parameters[name].weight_loader = ignore
        for name in self._waiting & set(expected):
            parameter = parameters[name]
            parameter.data = self._reader.tensor(name).view(parameter.dtype).view(parameter.shape)
            self._waiting.remove(name)

    def tables(self, tables: Mapping[str, Parameter]) -> None: ...

    def packed(self, layer: Module, parameters: Iterable[Any], pack: Pack) -> Any:
        name = self._names.get(id(layer))
        if name is None or name not in self._entries:
            return pack()
        self._waiting.discard(name)
        return ops().adopt(self._reader.tensor(name), self._entries[name].about["arguments"])

    def end(self) -> None:
        if self._waiting:  # their weights have not been read
            self._path.unlink(missing_ok=True)
            raise RuntimeError(f"{self._path} has weights that nobody asked for, {min(self._waiting)} and others: it is removed")
        size = sum(entry.size for entry in self._entries.values()) >> 20
        active.tell(weights=f"mapped, {size} MiB" if self._entries else "packed at this start; not kept: its file was of another model")


def ops() -> Any:
    found = active.native()
    assert found
    return found


def ignore(*_: Any, **__: Any) -> bool:
    """Load a weight that nobody will read: not from the disk either, for checkpoints are mapped."""
    return True


def described(parameters: Mapping[str, Tensor]) -> dict[str, list[Any]]:
    return {name: [str(each.dtype), list(each.shape)] for name, each in parameters.items()}


def files_of(folder: Path) -> Files:
    """What a checkpoint is known by."""
    return {str(path): identity(path) for path in sorted(folder.iterdir()) if path.name.endswith(WEIGHTS) and path.is_file()}


def identity(path: Path) -> list[int]:
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]


def open_session(folder: Path, files: Files, factors: Iterable[Any]) -> Session | None:
    """Begin to load a model of these *files*, packed as *factors* say; None if nothing can be kept, which is told."""
    key = hashlib.sha256(repr([FORMAT, files, *factors]).encode()).hexdigest()[:32]
    path = folder / f"{key}{SUFFIX}"
    try:
        reader = Reader(path)
    except FileNotFoundError:
        pass
    except (OSError, Damaged) as exc:
        active.say(f"{path} is not used: {exc}")
    else:
        with suppress(OSError):
            os.utime(path)
        return Reading(path, reader)
    try:
        make_room(folder, sum(identity[0] for identity in files.values()), path)
        return Writing(Writer(path), files)
    except BlockingIOError:
        problem = "another engine is writing them"
    except OSError as exc:
        problem = str(exc)
    active.tell(weights=f"packed at this start; not kept: {problem}")
    return None


def make_room(folder: Path, size: int, path: Path) -> None:
    """Remove what nobody can use any more, and then the files used longest ago, until *size* more bytes fit. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    for new in folder.glob(f"*{NEW}"):
        remove_remnant(new)
    found = {each: each.stat() for each in folder.glob(f"*{SUFFIX}")}
    disk = shutil.disk_usage(folder)
    taken, free = sum(stat.st_blocks * 512 for stat in found.values()), disk.free
    for each, stat in sorted(found.items(), key=lambda item: item[1].st_mtime):
        is_full = taken + size > disk.total * DISK_SHARE or free - size < disk.total * DISK_FREE
        if each != path and (is_full or not is_useful(each)):
            each.unlink()
            taken, free = taken - stat.st_blocks * 512, free + stat.st_blocks * 512
    if taken + size > disk.total * DISK_SHARE or free - size < disk.total * DISK_FREE:
        raise OSError(f"{folder} has no room for {size >> 20} MiB")


def is_useful(path: Path) -> bool:
    """Whether the checkpoint that a file was made of is still there."""
    try:
        return all(identity(Path(name)) == was for name, was in about(path).items())
    except (OSError, Damaged):
        return False
