import asyncio
import contextlib
import os
import socket
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from axiond.notify import Notifier, is_service


@pytest.fixture(params=["path", "abstract"])
def ear(request: pytest.FixtureRequest) -> Iterator[tuple[socket.socket, str]]:
    """A real datagram socket where systemd would listen, and its name."""
    with tempfile.TemporaryDirectory(prefix="ax") as folder, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        name = str(Path(folder) / "notify") if request.param == "path" else f"@axiond-{uuid.uuid4()}"
        sock.bind("\0" + name[1:] if name.startswith("@") else name)
        sock.setblocking(False)
        yield sock, name


def test_messages(ear: tuple[socket.socket, str]) -> None:
    """What each call sends, byte for byte."""
    sock, name = ear
    notifier = Notifier({"NOTIFY_SOCKET": name})
    notifier.status("fetching\nsmollm2  42 %")
    notifier.ready("serving 2 models")
    notifier.extend(12.5)
    notifier.stopping("draining")
    assert [sock.recv(4096) for _ in range(4)] == [
        b"STATUS=fetching smollm2 42 %",
        b"READY=1\nSTATUS=serving 2 models",
        b"EXTEND_TIMEOUT_USEC=12500000",
        b"STOPPING=1\nSTATUS=draining",
    ]


def test_a_socket_is_given_to_be_kept(ear: tuple[socket.socket, str]) -> None:
    sock, name = ear
    notifier = Notifier({"NOTIFY_SOCKET": name})
    with socket.create_server(("127.0.0.1", 0)) as listener:
        notifier.drop_kept()
        notifier.keep(listener)
        assert sock.recv(4096) == b"FDSTOREREMOVE=1\nFDNAME=listen"
        message, descriptors, _, _ = socket.recv_fds(sock, 4096, 2)
        with socket.socket(fileno=descriptors[0]) as kept:
            assert (message, kept.getsockname()) == (b"FDSTORE=1\nFDNAME=listen", listener.getsockname())


SERVICES = {
    "unit of type notify": ({"NOTIFY_SOCKET": "/run/systemd/notify"}, True),
    "unit of type simple": ({"INVOCATION_ID": "1", "SYSTEMD_EXEC_PID": str(os.getpid())}, True),
    "shell below a unit": ({"INVOCATION_ID": "1", "SYSTEMD_EXEC_PID": "1"}, False),
    "shell": ({}, False),
}


@pytest.mark.parametrize(("environ", "is_one"), SERVICES.values(), ids=SERVICES)
def test_what_is_a_service(environ: dict[str, str], is_one: bool) -> None:
    assert is_service(environ) is is_one


def test_reloading_carries_the_monotonic_clock(ear: tuple[socket.socket, str]) -> None:
    """systemd 253 and later pair RELOADING with READY by this time stamp."""
    sock, name = ear
    before_us = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    Notifier({"NOTIFY_SOCKET": name}).reloading("generation 2")
    first, stamp, last = sock.recv(4096).decode().splitlines()
    assert (first, last) == ("RELOADING=1", "STATUS=generation 2")
    assert before_us <= int(stamp.removeprefix("MONOTONIC_USEC=")) <= time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000


def test_long_status_stays_below_what_systemd_reads(ear: tuple[socket.socket, str]) -> None:
    """A datagram above 4096 bytes would be ignored whole; a character is never cut in two."""
    sock, name = ear
    Notifier({"NOTIFY_SOCKET": name}).ready("x" + "é" * 5000)
    message = sock.recv(65536)
    assert len(message) < 4096
    assert message.decode().startswith("READY=1\nSTATUS=xéé")


async def test_watchdog_is_fed_twice_a_period_until_cancelled(ear: tuple[socket.socket, str]) -> None:
    sock, name = ear
    notifier = Notifier({"NOTIFY_SOCKET": name, "WATCHDOG_USEC": "200000", "WATCHDOG_PID": str(os.getpid())})
    loop = asyncio.get_running_loop()
    task = asyncio.create_task(notifier.feed_watchdog())
    began = loop.time()
    fed = [await asyncio.wait_for(loop.sock_recv(sock, 64), 2) for _ in range(3)]
    assert fed == [b"WATCHDOG=1"] * 3
    assert 0.19 <= loop.time() - began < 1
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    assert task.cancelled()


@pytest.mark.parametrize(
    "extra",
    [{}, {"WATCHDOG_USEC": "200000", "WATCHDOG_PID": "1"}, {"WATCHDOG_USEC": "0"}, {"WATCHDOG_USEC": "soon"}],
    ids=["no watchdog", "another process's", "zero", "not a number"],
)
def test_no_watchdog_of_ours(ear: tuple[socket.socket, str], extra: dict[str, str]) -> None:
    assert Notifier({"NOTIFY_SOCKET": ear[1], **extra}).watchdog_s is None


async def test_feeding_without_a_watchdog_runs_until_cancelled() -> None:
    """It sits in the daemon's task group, where a task that ends is an error."""
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(Notifier({"WATCHDOG_USEC": "1000"}).feed_watchdog(), 0.05)


@pytest.mark.parametrize("name", ["", "/nonexistent/notify", "vsock:2:1234", "/" + "x" * 200, "@" + "x" * 200])
def test_never_raises(name: str) -> None:
    """Nobody listens, or at an address that cannot be: the daemon goes on."""
    notifier = Notifier({"NOTIFY_SOCKET": name} if name else {})
    notifier.status("a")
    notifier.ready("b\udc80")
    notifier.reloading("c")
    notifier.stopping("d")
    notifier.extend(1)


def test_a_full_queue_blocks_only_briefly(ear: tuple[socket.socket, str]) -> None:
    """A hung PID 1 must not hang the event loop."""
    notifier = Notifier({"NOTIFY_SOCKET": ear[1]})
    began = time.monotonic()
    queue_length = int(Path("/proc/sys/net/unix/max_dgram_qlen").read_text())
    for _ in range(queue_length + 2):
        notifier.status("x")
    assert time.monotonic() - began < 2
