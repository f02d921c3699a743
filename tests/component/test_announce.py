"""What systemd hears, over a real notify socket."""

import socket

import pytest

from axiond.announce import Announcer
from axiond.events import Events
from axiond.notify import Notifier


@pytest.fixture
def heard(tmp_path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "n"))
        listener.setblocking(False)

        def take():
            said = []
            while True:
                try:
                    said.append(listener.recv(4096).decode().split("\n")[0])
                except BlockingIOError:
                    return said

        yield Announcer(Notifier({"NOTIFY_SOCKET": str(tmp_path / "n")}), Events()), take


BUSY, CALM, DOWN = (True, True), (False, True), (False, False)
STORIES = {
    "boot": ([("a", True, False), ("b", True, False), ("c", *CALM)], ["STATUS=a", "STATUS=b", "READY=1"]),
    "boot-that-serves-nothing": ([("a", True, False), ("b", *DOWN)], ["STATUS=a", "STATUS=b"]),
    "boot-that-recovers": ([("a", *DOWN), ("b", *CALM)], ["STATUS=a", "READY=1"]),
    "reload": ([("a", *CALM), ("b", *BUSY), ("c", *BUSY), ("d", *CALM)], ["READY=1", "RELOADING=1", "STATUS=c", "READY=1"]),
    "live-edit": ([("a", *CALM), ("b", *CALM)], ["READY=1", "STATUS=b"]),
    "reload-that-leaves-nothing-served": ([("a", *CALM), ("b", *BUSY), ("c", *DOWN)], ["READY=1", "RELOADING=1", "READY=1"]),
    "same-text": ([("a", *CALM), ("a", *CALM)], ["READY=1"]),
}


@pytest.mark.parametrize(("rounds", "expected"), STORIES.values(), ids=STORIES)
async def test_story(heard, rounds, expected):
    announcer, take = heard
    for text, is_busy, is_up in rounds:
        announcer.after_round(text, is_busy, is_up)
    assert take() == expected
    assert announcer.became_ready.is_set() == ("READY=1" in expected)
