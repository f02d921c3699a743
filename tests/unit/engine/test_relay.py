"""What an engine prints reaches the daemon that is there, and the next one; no daemon holds up the engine."""

import socket
from collections.abc import Iterator

import pytest

from axiond.engine.output import TAIL_LINES
from axiond.engine.relay import LONGEST_PARTIAL_LINE, MOST_UNSENT_LINES, Relay

HELLO = '{"pid": 1}'


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """The host's end, as the host has it, and the daemon's."""
    host, daemon = socket.socketpair()
    host.setblocking(False)
    daemon.settimeout(5)
    with host, daemon:
        yield host, daemon


def numbered(first: int, last: int) -> bytes:
    return b"".join(b"line %d\n" % number for number in range(first, last))


def test_chunks_become_lines(pair: tuple[socket.socket, socket.socket]) -> None:
    host, daemon = pair
    relay = Relay()
    relay.meet(host, HELLO)
    for chunk in (b"one\ntw", b"o\n", b"thr"):
        relay.feed(chunk)
        relay.send()
    assert daemon.recv(4096) == HELLO.encode() + b"\none\ntwo\n"
    relay.end(b"the last words")
    host.close()
    assert daemon.recv(4096) == b"thr\nthe last words\n"


def test_a_daemon_that_comes_later_hears_the_tail(pair: tuple[socket.socket, socket.socket]) -> None:
    host, daemon = pair
    relay = Relay()
    relay.feed(numbered(0, 200))
    relay.meet(host, HELLO)
    relay.send()
    assert daemon.recv(2**20) == HELLO.encode() + b"\n" + numbered(200 - TAIL_LINES, 200)
    assert not relay.has_unsent


def test_a_next_daemon_is_told_what_an_earlier_one_has_heard(pair: tuple[socket.socket, socket.socket]) -> None:
    host, _ = pair
    relay = Relay()
    relay.feed(numbered(0, 10))
    relay.meet(host, HELLO)
    assert relay.heard == 0
    relay.feed(numbered(10, 20))
    relay.part()
    assert relay.heard == 20
    relay.feed(numbered(20, TAIL_LINES + 5))
    assert relay.heard == 15
    relay.feed(numbered(0, TAIL_LINES))
    assert relay.heard == 0


def test_a_daemon_that_is_gone_is_no_failure(pair: tuple[socket.socket, socket.socket]) -> None:
    host, daemon = pair
    relay = Relay()
    relay.meet(host, HELLO)
    daemon.close()
    relay.feed(numbered(0, 10))
    relay.send()
    relay.part()
    relay.end(b"the last words")


def test_a_daemon_that_does_not_read_loses_the_oldest_lines_whole(pair: tuple[socket.socket, socket.socket]) -> None:
    host, daemon = pair
    relay = Relay()
    relay.meet(host, HELLO)
    last = 10_000
    for number in range(0, last, 100):
        relay.feed(numbered(number, number + 100))
        relay.send()
    assert relay.has_unsent
    with daemon.makefile("rb") as reading:
        assert reading.readline() == HELLO.encode() + b"\n"
        numbers = []
        while not numbers or numbers[-1] < last - 1:
            relay.send()
            numbers.append(int(reading.readline().removeprefix(b"line ")))
    assert numbers[-MOST_UNSENT_LINES:] == list(range(last - MOST_UNSENT_LINES, last))
    assert len(numbers) < last


def test_a_line_without_an_end_is_cut(pair: tuple[socket.socket, socket.socket]) -> None:
    host, daemon = pair
    relay = Relay()
    relay.feed(b"x" * (LONGEST_PARTIAL_LINE + 1))
    relay.feed(b"y\n")
    relay.meet(host, HELLO)
    relay.send()
    assert daemon.recv(2**20).split(b"\n")[1:] == [b"x" * LONGEST_PARTIAL_LINE, b"y", b""]
