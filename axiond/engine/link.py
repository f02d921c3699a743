"""The daemon's end of an engine's host: the connection to it, and the process itself, which is not the daemon's child."""

import asyncio
import contextlib
import os
import select
import signal
import socket
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import pydantic

from axiond.engine.host import CONTROL_SOCKET, FORMAT, LONGEST_MESSAGE, READY
from axiond.engine.output import how_ended
from axiond.engine.spawn import HOST_LOG
from axiond.engine.sweep import is_marked, sweep
from axiond.reconcile.state import EngineKey

Result = TypeVar("Result")

CONNECT_INTERVAL_S = 0.01
HELLO_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True)
class Identity:
    """
    What the next daemon has to know about an engine that has proven itself.

    *memory_bytes* is what was planned for it; *ready_at* is the wall clock's time in seconds.
    """

    key: EngineKey
    model_name: str
    adapters: tuple[str, ...]
    memory_bytes: int
    ready_at: float


@dataclass(frozen=True, slots=True)
class Hello:
    """
    The first line of a host: who it is, and which engine it has if that was ever proven.

    *heard* of the lines that follow were told to an earlier daemon.
    """

    format: int
    pid: int
    identity: Identity | None
    heard: int


IDENTITY, HELLO = pydantic.TypeAdapter(Identity), pydantic.TypeAdapter(Hello)


@dataclass(slots=True)
class Link:
    """
    A host's process and the connection to it.

    *descriptor* is a pidfd, which no reused process id can deceive; *lock* is the descriptor of the folder's lock if this
    daemon made it. The first *heard* lines are an earlier daemon's.
    """

    pid: int
    descriptor: int
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    lock: int | None = None
    heard: int = 0

    async def prove(self, identity: Identity) -> None:
        """Tell the host whom it hosts: from now on the next daemon may adopt it."""
        self.writer.write(READY + IDENTITY.dump_json(identity) + b"\n")
        await self.writer.drain()

    def send_signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.descriptor, number)

    def close(self) -> None:
        self.writer.close()
        os.close(self.descriptor)
        if self.lock is not None:
            os.close(self.lock)


async def link_to_new(folder: Path, pid: int, lock: int) -> Link:
    """
    Connect to a host that was just started. On failure it is ended, with all it has started.

    Raises:
        OSError: it cannot be watched, or has ended.
    """
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError as exc:
        raise OSError(ended_at_once(folder)) from exc
    except OSError:
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)  # noqa: ASYNC222  after SIGKILL
        raise
    try:
        while True:
            with contextlib.suppress(FileNotFoundError, ConnectionError):
                reader, writer = await asyncio.open_unix_connection(str(folder / CONTROL_SOCKET), limit=LONGEST_MESSAGE)
                await read_hello(reader)
                return Link(pid, descriptor, reader, writer, lock)
            if is_readable(descriptor):
                raise OSError(ended_at_once(folder))
            await asyncio.sleep(CONNECT_INTERVAL_S)
    except BaseException:
        await end(pid, descriptor, folder)
        os.close(descriptor)
        raise


async def link_to_old(folder: Path) -> tuple[Link, Hello]:
    """
    Connect to the host of an engine that an earlier daemon has left in *folder*.

    Raises:
        OSError: there is none, or it says nothing sensible.
    """
    reader, writer = await asyncio.open_unix_connection(str(folder / CONTROL_SOCKET), limit=LONGEST_MESSAGE)
    try:
        pid = peer_pid(writer)
        link = Link(pid, os.pidfd_open(pid), reader, writer)
    except OSError:
        writer.close()
        raise
    try:
        if not is_marked(pid, folder):
            raise OSError(f"process {pid} is not of {folder}")
        async with asyncio.timeout(HELLO_TIMEOUT_S):
            hello = await read_hello(reader)
        link.heard = hello.heard
        return link, hello
    except BaseException:
        link.close()
        raise


async def read_hello(reader: asyncio.StreamReader) -> Hello:
    """
    Raises:
        ConnectionError: this is no hello, or of another format.
    """
    try:
        hello = HELLO.validate_json(await reader.readline())
    except ValueError as exc:
        raise ConnectionError("its host does not say who it is") from exc
    if hello.format != FORMAT:
        raise ConnectionError(f"its host speaks format {hello.format}, and this axiond {FORMAT}")
    return hello


def peer_pid(writer: asyncio.StreamWriter) -> int:
    """The process that listens at the other end."""
    found = writer.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    pid: int = struct.unpack("3i", found)[0]
    return pid


async def ended(descriptor: int) -> None:
    """Wait until the process behind a descriptor has ended; it is left to be reaped."""
    loop, over = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(descriptor, over.set)
    try:
        await over.wait()
    finally:
        loop.remove_reader(descriptor)


def is_readable(descriptor: int) -> bool:
    """Whether there is something to read, or an end: a pidfd's is its process's. Its number may be beyond what `select()` takes."""
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(0))


async def end(host: int, descriptor: int, folder: Path) -> str:
    """Kill a host, if it still lives, and everything that is left of its engine, even if cancelled meanwhile; tell how it ended."""
    return await uninterrupted(asyncio.create_task(asyncio.to_thread(bury, host, descriptor, folder)))


async def uninterrupted(task: asyncio.Task[Result]) -> Result:
    """Await a task to its end even if the caller is cancelled meanwhile; the cancellation is raised afterwards."""
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError as exc:
            cancelled = exc
    if cancelled:
        raise cancelled
    return task.result()


def bury(host: int, descriptor: int, folder: Path) -> str:
    with contextlib.suppress(ProcessLookupError):
        signal.pidfd_send_signal(descriptor, signal.SIGKILL)
    over = select.poll()
    over.register(descriptor, select.POLLIN)
    over.poll()
    # Without free descriptors /proc cannot be read; then the host's own sweep has to do.
    with contextlib.suppress(OSError):
        sweep(folder, host)
    return reap(descriptor)


def reap(descriptor: int) -> str:
    """Collect a host that has ended, if it is a child, and tell how it did: only its parent knows."""
    try:
        found = os.waitid(os.P_PIDFD, descriptor, os.WEXITED | os.WNOHANG)
    except ChildProcessError:
        return ""
    if found is None:
        return ""
    return how_ended(found.si_status if found.si_code == os.CLD_EXITED else -found.si_status)


def ended_at_once(folder: Path) -> str:
    said = ""
    with contextlib.suppress(OSError):
        said = (folder / HOST_LOG).read_text(errors="replace").strip().rpartition("\n")[2]
    return f"its host ended at once{f': {said}' if said else ''}"
