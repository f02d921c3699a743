"""What the unit lends the daemon must not reach an engine, which may run code that comes with a model."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

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
    host = (sys.executable, "-P", "-m", "axiond.engine.host", "--folder", str(runtime_dir), "--lock", "2", "--", *SHOW)
    with subprocess.Popen([*RAISE, *host], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as child:
        assert child.stdout
        out = child.stdout.read()
    got = [line for line in out.splitlines() if line.startswith("Cap")]
    assert [int(line.split()[1], 16) for line in got] == [0] * 3, out
