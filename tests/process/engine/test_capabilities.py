"""What the unit lends the daemon must not reach an engine, which may run code that comes with a model."""

import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from axiond.engine.host import CONTROL_SOCKET
from axiond.engine.spawn import HOST, HostArgs

USER = 65534
RAISE = ("setpriv", f"--reuid={USER}", "--clear-groups", "--inh-caps=+lease", "--ambient-caps=+lease")
SHOW = ("grep", "^Cap[PEA]", "/proc/self/status")


def can_raise() -> bool:
    return os.geteuid() == 0 and shutil.which("setpriv") is not None and subprocess.run([*RAISE, "true"], check=False).returncode == 0


@pytest.mark.skipif(not can_raise(), reason="only root can lend a capability")
def test_an_engine_has_no_capability(runtime_dir: Path) -> None:
    os.chown(runtime_dir, USER, -1)
    lent = subprocess.run([*RAISE, *SHOW], capture_output=True, text=True, check=True).stdout
    assert [int(line.split()[1], 16) for line in lent.splitlines()] == [1 << 28] * 3
    args = HostArgs(str(runtime_dir), (), (), None, SHOW, (), {"PATH": os.environ["PATH"]})
    with_lock = ("sh", "-c", f'exec 3<>"{runtime_dir}/lock"; exec "$@"', "sh")
    command = [*with_lock, *RAISE, *HOST]
    (runtime_dir / "lock").touch()
    with subprocess.Popen(command, stdin=subprocess.PIPE, text=True) as child, socket.socket(socket.AF_UNIX) as control:
        assert child.stdin
        child.stdin.write(args.to_json())
        child.stdin.close()
        deadline = time.monotonic() + 10
        while control.connect_ex(str(runtime_dir / CONTROL_SOCKET)) and time.monotonic() < deadline:
            time.sleep(0.01)
        with control.makefile() as lines:
            out = lines.read()
    got = [line for line in out.splitlines() if line.startswith("Cap")]
    assert [int(line.split()[1], 16) for line in got] == [0] * 3, out


@pytest.mark.skipif(not can_raise(), reason="only root can lend a capability")
def test_what_the_daemon_executes_has_no_capability_to_fork_on() -> None:
    """The fork server's children execute nothing, so it must have none itself."""
    code = f"import subprocess; from axiond.engine.plugin import lend_nothing; lend_nothing(); subprocess.run({SHOW!r}, check=True)"
    got = subprocess.run([*RAISE, sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert [int(line.split()[1], 16) for line in got.splitlines()] == [0] * 3
