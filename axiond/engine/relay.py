"""What an engine prints, on its way through its host to whichever daemon there is. Standard library only."""

import socket
from collections import deque
from contextlib import suppress

from axiond.engine.output import TAIL_LINES

LONGEST_PARTIAL_LINE = 8192
# A daemon that does not read costs its oldest lines, and never holds up the engine.
MOST_UNSENT_LINES = 1000
FLUSH_TIMEOUT_S = 1.0


class Relay:
    """Keeps the last lines, so that a daemon which comes later knows them, and passes new ones on to the one that is there."""

    def __init__(self) -> None:
        self._partial = b""
        self._tail: deque[bytes] = deque(maxlen=TAIL_LINES)
        self._unsent: deque[bytes] = deque(maxlen=MOST_UNSENT_LINES)
        self._begun = b""
        self._daemon: socket.socket | None = None
        # How many of the last lines an earlier daemon was told.
        self.heard = 0

    @property
    def has_unsent(self) -> bool:
        return bool(self._begun or self._unsent)

    def meet(self, daemon: socket.socket, hello: str) -> None:
        """Greet a daemon; from now on the lines are for this one."""
        self._daemon, self._begun = daemon, hello.encode() + b"\n"
        self._unsent = deque(self._tail, maxlen=MOST_UNSENT_LINES)

    def part(self) -> None:
        """The daemon is gone."""
        self._daemon, self._begun = None, b""
        self._unsent.clear()
        self.heard = len(self._tail)

    def feed(self, chunk: bytes) -> None:
        """Take what the engine has printed."""
        *lines, self._partial = (self._partial + chunk).split(b"\n")
        if len(self._partial) > LONGEST_PARTIAL_LINE:
            lines, self._partial = [*lines, self._partial], b""
        for line in lines:
            self.say(line)

    def say(self, line: bytes) -> None:
        line = line[:LONGEST_PARTIAL_LINE] + b"\n"
        if len(self._tail) == TAIL_LINES:
            self.heard = max(0, self.heard - 1)
        self._tail.append(line)
        if self._daemon:
            self._unsent.append(line)

    def send(self) -> None:
        """Send as much as the daemon takes at once."""
        with suppress(BlockingIOError, BrokenPipeError, ConnectionResetError):
            while self._daemon and self.has_unsent:
                self._begun = self._begun or self._unsent.popleft()
                self._begun = self._begun[self._daemon.send(self._begun) :]

    def end(self, last_words: bytes) -> None:
        """Send the rest, an unfinished line too, and the last words; wait a moment for a daemon that is slow."""
        if self._partial:
            self.say(self._partial)
        self.say(last_words)
        if self._daemon:
            self._daemon.settimeout(FLUSH_TIMEOUT_S)
            with suppress(OSError):
                self._daemon.sendall(self._begun + b"".join(self._unsent))
