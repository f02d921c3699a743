"""Tell systemd what the daemon is doing: the sd_notify protocol. Silent where nobody listens, and never raises."""

import asyncio
import os
import socket
import time
from array import array
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Final

# systemd ignores datagrams above PIPE_BUF (4096 bytes).
_MAX_STATUS_BYTES: Final = 2048
# Only a hung PID 1 lets its buffer run full; the event loop must not hang with it.
_SEND_TIMEOUT_S: Final = 0.25
_KEPT: Final = "listen"


class Notifier:
    """The service manager's ear, found in *environ*: NOTIFY_SOCKET, WATCHDOG_USEC and WATCHDOG_PID."""

    def __init__(self, environ: Mapping[str, str] = os.environ) -> None:
        self._address = _address(environ.get("NOTIFY_SOCKET", ""))
        self.watchdog_s = _watchdog_s(environ) if self._address else None

    def ready(self, status: str) -> None:
        """A generation is served; also ends a reload."""
        self._send("READY=1", _status(status))

    def reloading(self, status: str) -> None:
        """A new manifest is being acted on; `ready()` has to follow."""
        self._send("RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}", _status(status))

    def status(self, text: str) -> None:
        """One line for `systemctl status`."""
        self._send(_status(text))

    def stopping(self, status: str) -> None:
        """The daemon is on its way out."""
        self._send("STOPPING=1", _status(status))

    def extend(self, seconds: float) -> None:
        """The start or stop under way needs at least this long from now on."""
        self._send(f"EXTEND_TIMEOUT_USEC={int(seconds * 1e6)}")

    def keep(self, sock: socket.socket) -> None:
        """Have a socket kept open, and handed to the next process of this service (FileDescriptorStoreMax= has to allow it)."""
        self._send("FDSTORE=1", f"FDNAME={_KEPT}", descriptors=(sock.fileno(),))

    def drop_kept(self) -> None:
        """Have no socket kept any more. The service manager closes it in its own time."""
        self._send("FDSTOREREMOVE=1", f"FDNAME={_KEPT}")

    async def feed_watchdog(self) -> None:
        """Prove twice in every watchdog period that the event loop turns. Runs until cancelled, also without a watchdog."""
        while self.watchdog_s is not None:
            self._send("WATCHDOG=1")
            await asyncio.sleep(self.watchdog_s / 2)
        await asyncio.Event().wait()

    def _send(self, *assignments: str, descriptors: Sequence[int] = ()) -> None:
        if not self._address:
            return
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
            sock.settimeout(_SEND_TIMEOUT_S)
            attached = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", descriptors))] if descriptors else []
            sock.sendmsg(["\n".join(assignments).encode(errors="replace")], attached, 0, self._address)


def is_service(environ: Mapping[str, str] = os.environ) -> bool:
    """
    Whether a service manager runs this very process and would start it again.

    INVOCATION_ID alone does not tell: a shell in a desktop's terminal has it too.
    """
    return bool(_address(environ.get("NOTIFY_SOCKET", ""))) or environ.get("SYSTEMD_EXEC_PID") == str(os.getpid())


def _address(name: str) -> str:
    """A path, or an abstract name, which is written with @ and begins with NUL; empty for kinds not spoken (vsock)."""
    if name.startswith("@"):
        return "\0" + name[1:]
    return name if name.startswith("/") else ""


def _watchdog_s(environ: Mapping[str, str]) -> float | None:
    period_us, pid = environ.get("WATCHDOG_USEC", ""), environ.get("WATCHDOG_PID", "")
    is_for_us = not pid or pid == str(os.getpid())
    return int(period_us) / 1e6 if period_us.isdecimal() and int(period_us) and is_for_us else None


def _status(text: str) -> str:
    line = " ".join(text.split()).encode(errors="replace")[:_MAX_STATUS_BYTES]
    return f"STATUS={line.decode(errors='ignore')}"
