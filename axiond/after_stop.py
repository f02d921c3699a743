"""
What the systemd unit runs when the daemon has ended, however it has: `python -m axiond.after_stop UNIT`.

Engines are left running for the next daemon. Where systemd starts none, because the unit is stopped or the machine goes
down, they are ended here.
"""

import asyncio
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

ASKING_TIMEOUT_S = 5.0


def is_next_daemon_coming(job: str, result: str) -> bool:
    """
    Args:
        job: what systemd is doing with the unit, as `systemctl list-jobs` says it; empty if nothing.
        result: how the daemon ended, as systemd tells in SERVICE_RESULT. With no job, `Restart=on-failure` decides.
    """
    return job != "stop" and (bool(job) or result != "success")


def job_of(unit: str) -> str:
    """Ask systemd. Empty also if it cannot be asked, as without D-Bus."""
    command = ("systemctl", "list-jobs", "--no-legend", "--plain")
    with suppress(OSError, subprocess.SubprocessError):
        listing = subprocess.run(command, capture_output=True, text=True, timeout=ASKING_TIMEOUT_S, check=True).stdout
        jobs = (line.split() for line in listing.splitlines())
        return next((fields[2] for fields in jobs if len(fields) == 4 and fields[1] == unit), "")
    return ""


def main(unit: str) -> int:
    if not is_next_daemon_coming(job_of(unit), os.environ.get("SERVICE_RESULT", "success")):
        from axiond.engine.adopt import end_engines  # half a second of imports, for which the next daemon would wait

        asyncio.run(end_engines(Path(os.environ["RUNTIME_DIRECTORY"])))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
