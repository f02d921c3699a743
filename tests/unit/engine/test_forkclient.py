"""When a fork server is kept, started, replaced or given up, and what goes over its socket."""

import asyncio
import json
import os
import socket
import threading
from pathlib import Path

import pytest

from axiond.engine.forkclient import Deaths, Stamp, judge, to_its_end
from axiond.engine.forkserver import framed, receive
from axiond.engine.spawn import HostArgs

OLD = Stamp("libgomp.so", (("torch/__init__.py", 1, 10),))
NEW = Stamp("libgomp.so", (("torch/__init__.py", 2, 11),))
OTHER_LIBRARY = Stamp("libtcmalloc.so:libgomp.so", OLD.files)


@pytest.mark.parametrize(
    ("running", "wanted", "deaths", "verdict"),
    [
        pytest.param(None, OLD, Deaths(), "start", id="there is none"),
        pytest.param(OLD, OLD, Deaths(), "keep", id="nothing changed"),
        pytest.param(OLD, NEW, Deaths(), "replace", id="a package was installed"),
        pytest.param(OLD, OTHER_LIBRARY, Deaths(), "replace", id="another library comes first"),
        pytest.param(None, OLD, Deaths(OLD, 1), "start", id="died once"),
        pytest.param(None, OLD, Deaths(OLD, 2), "give up", id="died twice"),
        pytest.param(OLD, OLD, Deaths(OLD, 2), "keep", id="one that lives is never given up"),
        pytest.param(None, NEW, Deaths(OLD, 2), "start", id="what died twice was another one"),
        pytest.param(OLD, NEW, Deaths(NEW, 2), "give up", id="the old one is no help where the new one dies"),
    ],
)
def test_what_becomes_of_it(running: Stamp | None, wanted: Stamp, deaths: Deaths, verdict: str) -> None:
    assert judge(running, wanted, deaths) == verdict


def test_deaths_of_another_stamp_are_counted_anew() -> None:
    deaths = Deaths()
    counts = []
    for stamp in (OLD, OLD, NEW, OLD):
        deaths.add(stamp)
        counts.append(deaths.count)
    assert counts == [1, 2, 1, 1]


ARGS = HostArgs("/f", (0, 2), (), None, ("python",), ("--model", "ä" * 300_000), {"NAME": "value"})


def test_a_request_arrives_whole_with_its_descriptor() -> None:
    """However it is cut into pieces."""
    daemon, server = socket.socketpair()
    with daemon, server, Path(os.devnull).open() as lock:
        message = framed(json.loads(ARGS.to_json()))
        socket.send_fds(daemon, [message[:2]], [lock.fileno()])
        pieces = [message[2:7], *(message[at : at + 50_000] for at in range(7, len(message), 50_000))]
        sending = threading.Thread(target=lambda: [daemon.sendall(piece) for piece in pieces])
        sending.start()
        received = receive(server)
        sending.join()
        assert received
        args, (descriptor,) = received
        try:
            assert (args, os.path.sameopenfile(descriptor, lock.fileno())) == (ARGS, True)
        finally:
            os.close(descriptor)


@pytest.mark.parametrize("said", [b"", b"\0\0", b"\0\0\0\x09{"])
def test_a_daemon_that_is_gone_asks_for_nothing(said: bytes) -> None:
    daemon, server = socket.socketpair()
    with server:
        with daemon:
            daemon.sendall(said)
        assert receive(server) is None


async def test_a_cancelled_request_still_hears_its_answer() -> None:
    """The next one would take it for its own."""
    answer, unwanted = asyncio.Event(), list[bool]()
    asking = asyncio.create_task(to_its_end(answer.wait(), unwanted.append))
    for _ in range(2):
        await asyncio.sleep(0)
        asking.cancel()
        for _ in range(10):
            await asyncio.sleep(0)
        assert not asking.done()
    answer.set()
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert unwanted == [True]
