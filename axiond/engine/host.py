"""
The supervisor of one engine: `python -m axiond.engine.host --folder DIR -- COMMAND...`. Standard library only, one thread.

It ends for one of four reasons: the command ended, a process that reported to the guard socket died, SIGTERM, or standard
input closed because the daemon is gone. Whichever it is, nothing of the engine is left when it exits. Its last output line
says why. Its exit code is 0 if it was asked to end, else the command's, or 128 and the signal's number.
"""

import argparse
import os
import selectors
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from axiond.engine.output import ENDED, how_ended
from axiond.engine.plugin import GUARD_SOCKET, PR_SET_PDEATHSIG, die_with_parent, prctl
from axiond.engine.sweep import sweep

PR_SET_CHILD_SUBREAPER = 36
PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL = 47, 4
TERM_GRACE_S = 8.0
# What is left of an engine gets this long to say why one of its processes died.
WORDS_GRACE_S = 2.0
STDIN, STDERR = 0, 2
FORWARDED = (signal.SIGTERM, signal.SIGINT)


class Host:
    """One engine's command, the processes that reported to it, and the first reason to end."""

    def __init__(self, command: Sequence[str], guard: socket.socket) -> None:
        self.end: tuple[int, str] | None = None
        self._deadline = float("inf")
        self._is_command_over = False
        self._guard = guard
        self._peers: dict[socket.socket, str] = {}
        self._signals = catch_signals()
        self._selector = selectors.DefaultSelector()
        self._watch(STDIN, self._hear_daemon)
        self._watch(self._signals, self._hear_signals)
        self._watch(guard, self._meet)
        self._command = spawn(command)

    def run(self) -> None:
        """Wait for a reason to end, and then until the command is over or its grace is."""
        while not self._is_command_over and (left_s := self._deadline - time.monotonic()) > 0:
            for key, _ in self._selector.select(min(left_s, 3600.0)):
                key.data()

    def _watch(self, source: int | socket.socket, hear: Callable[[], None]) -> None:
        self._selector.register(source, selectors.EVENT_READ, hear)

    def _finish(self, code: int, words: str, grace_s: float) -> None:
        if self.end is None:
            self.end, self._deadline = (code, words), time.monotonic() + grace_s

    def _stop(self, words: str) -> None:
        if self.end is None:
            os.kill(self._command, signal.SIGTERM)
            self._finish(0, words, TERM_GRACE_S)

    def _hear_daemon(self) -> None:
        if not os.read(STDIN, 4096):
            self._selector.unregister(STDIN)
            self._stop("ended with its daemon")

    def _hear_signals(self) -> None:
        numbers = os.read(self._signals, 4096)
        self._reap()
        if any(number in numbers for number in FORWARDED):
            self._stop("was stopped")

    def _reap(self) -> None:
        """Collect the command and every orphan that was handed to this process."""
        with suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                if ended[0] == self._command:
                    self._is_command_over = True
                    code = os.waitstatus_to_exitcode(ended[1])
                    if code < 0 and self.end and self.end[0]:
                        # The process that seemed lost died of this: its parent's death killed it.
                        self.end = None
                    # Code 0 is a failure too: nobody asked the command to end.
                    self._finish(128 - code if code < 0 else code or 1, how_ended(code), grace_s=0.0)

    def _meet(self) -> None:
        """Take the connection of a guarded process; it says its name and then nothing until its end."""
        peer, _ = self._guard.accept()
        self._peers[peer] = "of unknown name"
        self._watch(peer, lambda: self._hear_peer(peer))

    def _hear_peer(self, peer: socket.socket) -> None:
        said = ""
        with suppress(OSError):
            said = peer.recv(4096).decode(errors="replace").strip()
        if said:
            self._peers[peer] = said
            return
        self._selector.unregister(peer)
        peer.close()
        self._reap()
        self._finish(1, f"lost its process {self._peers.pop(peer)}", WORDS_GRACE_S)


def catch_signals() -> int:
    """Have signals written, by their numbers, to a descriptor, which is returned."""
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
    for number in (*FORWARDED, signal.SIGCHLD):
        signal.signal(number, lambda _number, _frame: None)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    return read_end


def spawn(command: Sequence[str]) -> int:
    """Start the command so that it cannot outlive this process."""
    host = os.getpid()
    # A signal between fork and exec would go to this process's handlers, which are lost with the exec.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, FORWARDED)
    pid = os.fork() or become(command, host, mask)
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    return pid


def become(command: Sequence[str], host: int, mask: Iterable[int]) -> NoReturn:
    try:
        die_with_parent(host)
        for number in (*FORWARDED, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        os.dup2(os.open(os.devnull, os.O_RDONLY), STDIN)
        os.execvp(command[0], list(command))  # noqa: S606  no shell is wanted
    except OSError as exc:
        os.write(STDERR, f"{command[0]}: {exc.strerror}\n".encode())
    finally:
        os._exit(127)


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="axiond.engine.host")
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--lock", type=int, required=True, help="descriptor of the folder's lock, held until this process ends")
    parser.add_argument("--cores", type=lambda text: {int(core) for core in text.split(",")}, help="CPUs the engine may use")
    parser.add_argument("command", nargs="+")
    options = parser.parse_args(argv)
    os.set_inheritable(options.lock, False)
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    # What the daemon may do beyond its user's rights is none of the engine's business.
    prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL)
    if options.cores:
        os.sched_setaffinity(0, options.cores)
    with socket.socket(socket.AF_UNIX) as guard:
        guard.bind(str(options.folder / GUARD_SOCKET))
        guard.listen(64)
        host = Host(options.command, guard)
        host.run()
    sweep(options.folder, os.getpid())
    code, words = host.end or (1, "ended for no known reason")
    with suppress(OSError):
        os.write(STDERR, f"{ENDED}{words}\n".encode())
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
