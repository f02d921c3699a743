import pytest

from axiond.after_stop import is_next_daemon_coming

ROWS = {
    "stopped": ("stop", "success", False),
    "stopped, and it had to be killed": ("stop", "timeout", False),
    "restarted": ("restart", "success", True),
    "restarted, and it had to be killed": ("restart", "timeout", True),
    "killed": ("", "signal", True),
    "hung": ("", "watchdog", True),
    "failed": ("", "exit-code", True),
    "ended by a signal that asks for it": ("", "success", False),
}


@pytest.mark.parametrize(("job", "result", "is_coming"), ROWS.values(), ids=ROWS)
def test_whether_systemd_starts_the_next_daemon(job: str, result: str, is_coming: bool) -> None:
    assert is_next_daemon_coming(job, result) is is_coming
