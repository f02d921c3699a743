"""
The supervisor of one engine: executed (`python -m axiond.engine.host`, its arguments on standard input) or forked, which
calls `supervise()`. Standard library only, one thread.

It ends for one of these reasons: the command ended, a process that reported to the guard socket died, SIGTERM, or its
daemon is gone. It is no child of the daemon, nor does it share a pipe with it: the daemon connects to the host's control
socket, reads a line of JSON that tells which engine this is, and then what the engine prints. Once the daemon has said
`ready IDENTITY`, the end of its connection is no reason to end for the *keep_s* seconds in which the next daemon may come.

Whatever the reason, nothing of the engine is left when the host exits. Its last line says why.
"""

import json
import os
import selectors
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import NoReturn

from axiond.engine.output import ENDED, how_ended
from axiond.engine.plugin import GUARD_SOCKET, PR_SET_PDEATHSIG, die_with_parent, lend_nothing, prctl
from axiond.engine.relay import Relay
from axiond.engine.spawn import LOCK_DESCRIPTOR, HostArgs
from axiond.engine.sweep import sweep
from axiond.numa import prefer_memory

CONTROL_SOCKET = "control"
# Of the first line that a host says; a daemon adopts no engine whose host speaks another one.
FORMAT = 1
READY = b"ready "
LONGEST_MESSAGE = 2**20
PR_SET_CHILD_SUBREAPER = 36
TERM_GRACE_S = 8.0
# What is left of an engine gets this long to say why one of its processes died.
WORDS_GRACE_S = 2.0
FIRST_CALL_S = 10.0
STDIN, STDOUT, STDERR = 0, 1, 2
FORWARDED = (signal.SIGTERM, signal.SIGINT)
FOR_EVER = float("inf")


class Host:
    """One engine's command, the processes that reported to it, the daemon if there is one, and the first reason to end."""

    def __init__(self, command: int, keep_s: float | None, output: int, signals: int, guard: socket.socket, control: socket.socket) -> None:
        self.end: tuple[int, str] | None = None
        self.relay = Relay()
        self._command, self._keep_s, self._output, self._signals = command, keep_s, output, signals
        self._guard, self._control = guard, control
        self._peers: dict[socket.socket, str] = {}
        self._daemon: socket.socket | None = None
        self._identity: object = None
        self._message = b""
        self._is_command_over = False
        self._deadline = FOR_EVER
        self._alone_until = time.monotonic() + FIRST_CALL_S
        self._selector = selectors.DefaultSelector()
        self._watch(output, self.hear_output)
        self._watch(signals, self._hear_signals)
        self._watch(guard, self._meet)
        self._watch(control, self._meet_daemon)

    def run(self) -> None:
        """Wait for a reason to end, and then until the command is over or its grace is."""
        while not self._is_command_over and (left_s := self._deadline - time.monotonic()) > 0:
            lonely_s = self._alone_until - time.monotonic()
            if lonely_s <= 0:
                self._alone_until = FOR_EVER
                self._stop("was left alone by its daemon")
                continue
            self._send()
            for key, _ in self._selector.select(min(left_s, lonely_s, 3600.0)):
                key.data()

    def tell_first_daemon(self) -> None:
        """A command that ended at once has words for a daemon that has not come yet."""
        left_s = self._alone_until - time.monotonic()
        if self._daemon is None and self._identity is None and 0 < left_s <= FIRST_CALL_S:
            self._control.settimeout(left_s)
            with suppress(OSError):
                self._meet_daemon()

    def hear_output(self) -> None:
        """Read as much as a pipe holds. At its end there is nothing to wait for any more."""
        with suppress(BlockingIOError, KeyError):
            if chunk := os.read(self._output, 65536):
                self.relay.feed(chunk)
            else:
                self._selector.unregister(self._output)

    def _watch(self, source: int | socket.socket, hear: Callable[[], None]) -> None:
        self._selector.register(source, selectors.EVENT_READ, hear)

    def _send(self) -> None:
        self.relay.send()
        if self._daemon:
            events = selectors.EVENT_READ | (selectors.EVENT_WRITE if self.relay.has_unsent else 0)
            self._selector.modify(self._daemon, events, self._hear_daemon)

    def _finish(self, code: int, words: str, grace_s: float) -> None:
        if self.end is None:
            self.end, self._deadline = (code, words), time.monotonic() + grace_s

    def _stop(self, words: str) -> None:
        if self.end is None:
            os.kill(self._command, signal.SIGTERM)
            self._finish(0, words, TERM_GRACE_S)

    def _meet_daemon(self) -> None:
        """Take a daemon's connection; a later one is the next daemon's."""
        self._dismiss()
        self._daemon, _ = self._control.accept()
        self._daemon.setblocking(False)
        self._watch(self._daemon, self._hear_daemon)
        self._alone_until, self._message = FOR_EVER, b""
        hello = {"format": FORMAT, "pid": os.getpid(), "identity": self._identity, "heard": self.relay.heard}
        self.relay.meet(self._daemon, json.dumps(hello))

    def _dismiss(self) -> None:
        if self._daemon:
            self._selector.unregister(self._daemon)
            self._daemon.close()
            self._daemon = None
            self.relay.part()

    def _hear_daemon(self) -> None:
        assert self._daemon
        said = b""
        try:
            said = self._daemon.recv(65536)
        except BlockingIOError:
            return
        except OSError:
            pass
        if said:
            *messages, self._message = (self._message + said).split(b"\n")
            for message in messages:
                self._obey(message)
            return
        self._dismiss()
        if self._identity is None or self._keep_s is None:
            self._stop("ended with its daemon")
        else:
            self._alone_until = time.monotonic() + self._keep_s

    def _obey(self, message: bytes) -> None:
        if message.startswith(READY):
            with suppress(ValueError):
                self._identity = json.loads(message.removeprefix(READY))

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


def supervise(args: HostArgs, lock: int, become: Callable[[], NoReturn]) -> int:
    """
    Be the host of one engine, to its end.

    Args:
        args: what to host, and how.
        lock: descriptor of the folder's lock, held until this process ends.
        become: what the engine's process does; it is a child of this one, with the engine's cores, standard output and nothing else open.

    Returns:
        0 if it was asked to end, else the command's exit code, or 128 and the signal's number.
    """
    os.set_inheritable(lock, False)
    os.dup2(os.open(os.devnull, os.O_RDONLY), STDIN)
    if os.getsid(0) != os.getpid():
        os.setsid()
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    prctl(PR_SET_PDEATHSIG, 0)
    lend_nothing()
    if args.cores:
        os.sched_setaffinity(0, args.cores)
    if args.nodes:
        with suppress(OSError):
            prefer_memory(args.nodes)
    folder = Path(args.folder)
    with ExitStack() as held:
        held.callback(os.close, lock)
        output, printing = pipe(held)
        signals, waking = pipe(held)
        for end in (output, signals, waking):
            os.set_blocking(end, False)
        guard, control = (listen(held, folder / name) for name in (GUARD_SOCKET, CONTROL_SOCKET))
        catch_signals(waking)
        host = Host(fork(become, printing, held), args.keep_s, output, signals, guard, control)
        host.run()
        host.tell_first_daemon()
        sweep(folder, os.getpid())
        host.hear_output()
        code, words = host.end or (1, "ended for no known reason")
        host.relay.end(f"{ENDED}{words}".encode())
    return code


def pipe(held: ExitStack) -> tuple[int, int]:
    ends = os.pipe()
    for end in ends:
        held.callback(os.close, end)
    return ends


def listen(held: ExitStack, path: Path) -> socket.socket:
    listener = held.enter_context(socket.socket(socket.AF_UNIX))
    listener.bind(str(path))
    listener.listen(64)
    return listener


def catch_signals(waking: int) -> None:
    """Have signals written, by their numbers, to a descriptor."""
    signal.set_wakeup_fd(waking, warn_on_full_buffer=False)
    for number in (*FORWARDED, signal.SIGCHLD):
        signal.signal(number, lambda _number, _frame: None)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)


def fork(become: Callable[[], NoReturn], printing: int, held: ExitStack) -> int:
    """Start the engine's process so that it cannot outlive this one."""
    host = os.getpid()
    # A signal between fork and exec would go to this process's handlers, which are lost with the exec.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, FORWARDED)
    pid = os.fork() or live(become, host, printing, held, mask)
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    return pid


def live(become: Callable[[], NoReturn], host: int, printing: int, held: ExitStack, mask: Iterable[int]) -> NoReturn:
    """Be the engine's process."""
    code = 1
    try:
        die_with_parent(host)
        signal.set_wakeup_fd(-1)
        for number in (*FORWARDED, signal.SIGHUP, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        os.dup2(printing, STDOUT)
        os.dup2(printing, STDERR)
        held.close()
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        become()
    except SystemExit as exc:
        code = exc.code if isinstance(exc.code, int) else int(exc.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def execute(args: HostArgs) -> NoReturn:
    """Become the engine's command."""
    try:
        os.execvpe(args.command[0], [*args.command, *args.argv], args.environ)  # noqa: S606  no shell is wanted
    except OSError as exc:
        os.write(STDERR, f"{args.command[0]}: {exc.strerror}\n".encode())
        os._exit(127)


def main() -> int:
    # Whatever the daemon was started with may be open here too, which nobody expects to live as long as an engine.
    os.closerange(LOCK_DESCRIPTOR + 1, os.sysconf("SC_OPEN_MAX"))
    with open(STDIN, "rb", closefd=False) as stdin:
        args = HostArgs.from_json(stdin.read())
    return supervise(args, LOCK_DESCRIPTOR, lambda: execute(args))


if __name__ == "__main__":
    sys.exit(main())
