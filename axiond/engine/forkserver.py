"""
A process that has imported what engines need, and forks a host for each engine: `python -m axiond.engine.forkserver`.

The daemon starts it with a socket as standard input and the name of a module as argument. The module has `prepare()`,
called once, and `serve(argv)`, which is what a forked engine does. Requests and answers are JSON behind its length; a request
brings the lock of the engine's folder along, and the end of a pipe that the host holds open for as long as it lives. The
fork server ends when the socket does, and hosts live on.

Threads do not survive a fork, and what they hold is then held for ever. So it has one thread, and refuses to fork otherwise.
"""

import ctypes
import gc
import importlib
import json
import os
import signal
import socket
import sys
import tempfile
import traceback
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn, Protocol, cast

from axiond.engine.host import supervise
from axiond.engine.plugin import PR_SET_PDEATHSIG, prctl
from axiond.engine.spawn import HOST_LOG, HostArgs
from axiond.engine.sweep import MARK

LENGTH_BYTES = 4
STDIN, STDOUT, STDERR = 0, 1, 2
ENV_START, ENV_END = 47, 48  # fields of /proc/PID/stat behind the name


class Preload(Protocol):
    """What the module has to have."""

    def prepare(self) -> None: ...

    def serve(self, argv: tuple[str, ...]) -> int: ...


def framed(message: Mapping[str, Any]) -> bytes:
    text = json.dumps(message).encode()
    return len(text).to_bytes(LENGTH_BYTES, "big") + text


def receive(channel: socket.socket) -> tuple[HostArgs, list[int]] | None:
    """Read a request and its descriptors; None when the daemon is gone."""
    start, descriptors, _, _ = socket.recv_fds(channel, LENGTH_BYTES, 2)
    if not start or (length := receive_all(channel, LENGTH_BYTES, start)) is None:
        return None
    text = receive_all(channel, int.from_bytes(length, "big"))
    return None if text is None else (HostArgs.from_json(text), descriptors)


def receive_all(channel: socket.socket, count: int, start: bytes = b"") -> bytes | None:
    found = bytearray(start)
    while len(found) < count:
        if not (chunk := channel.recv(count - len(found))):
            return None
        found += chunk
    return bytes(found)


def threads() -> int:
    return len(list(Path("/proc/self/task").iterdir()))


def main(name: str) -> int:
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    # Whatever the daemon was started with may be open here too, which nobody expects to live as long as an engine.
    os.closerange(STDERR + 1, os.sysconf("SC_OPEN_MAX"))
    # Hosts are nobody's children, so nobody waits for them.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    channel = socket.socket(fileno=os.dup(STDIN))
    os.dup2(os.open(os.devnull, os.O_RDONLY), STDIN)
    # Of the environment only: what /proc shows is where forked processes write theirs.
    placeholder = os.environ.pop(MARK)
    preload = cast("Preload", importlib.import_module(name))
    preload.prepare()
    # What is here now is collected by no forked process, which would only copy its pages.
    gc.collect()
    gc.freeze()
    channel.sendall(framed({"ready": os.getpid()}))
    while request := receive(channel):
        args, (lock, held) = request
        if (count := threads()) != 1:
            channel.sendall(framed({"problem": f"it has {count} threads, and a fork keeps one only"}))
        elif pid := os.fork():
            channel.sendall(framed({"pid": pid}))
        else:
            channel.close()
            be_host(args, lock, preload, placeholder)
        os.close(lock)
        os.close(held)
    return 0


def be_host(args: HostArgs, lock: int, preload: Preload, placeholder: str) -> NoReturn:
    """Be the host of an engine, as an executed one would."""
    code = 1
    try:
        log = os.open(Path(args.folder) / HOST_LOG, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        os.dup2(log, STDOUT)
        os.dup2(log, STDERR)
        os.close(log)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        show_mark(placeholder, args.folder)
        os.environ.clear()
        os.environ.update(args.environ)
        tempfile.tempdir = None
        code = supervise(args, lock, lambda: sys.exit(preload.serve(args.argv)))
    except BaseException:
        traceback.print_exc()
    finally:
        # An end as usual would take its time to let go of what belongs to the fork server.
        os._exit(code)


def show_mark(placeholder: str, folder: str) -> None:
    """Have /proc/PID/environ say which engine this process belongs to: in place, where the kernel reads it."""
    old, new = (f"{MARK}={value}\0".encode() for value in (placeholder, folder))
    assert len(old) == len(new), "every engine's folder has a name of the same length"
    fields = Path("/proc/self/stat").read_bytes().rpartition(b")")[2].split()
    start, end = int(fields[ENV_START]), int(fields[ENV_END])
    ctypes.memmove(start + ctypes.string_at(start, end - start).index(old), new, len(new))


if __name__ == "__main__":
    with suppress(KeyboardInterrupt, BrokenPipeError):
        sys.exit(main(sys.argv[1]))
