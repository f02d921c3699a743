"""Where the plugin leaves vLLM as it is. Each time in a process of its own, which has imported vLLM's beginnings only."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from axiond.monitor import kernels_report

NOTHING = """
import sys
from axiond.kernels import plugin
before = list(sys.meta_path)
plugin.register()
assert len(sys.meta_path) == len(before) + 2  # for torch.compile and memory, which are other matters
print(*sorted(name for name in sys.modules if name.startswith("axiond.kernels.")))
"""
CHEAP = " ".join(f"axiond.kernels.{name}" for name in ("active", "compiled", "imports", "memory", "plugin", "settings"))


def run(folder: Path, code: str, **environ: str) -> str:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("AXIOND_")}
    done = subprocess.run(
        [sys.executable, "-c", code], env=clean | {"AXIOND_ENGINE": str(folder)} | environ, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


def test_off(tmp_path: Path) -> None:
    """Nothing of vLLM is even looked at."""
    assert run(tmp_path, NOTHING + "assert 'vllm' not in sys.modules", AXIOND_KERNELS="off") == CHEAP
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("version", ["0.33.0", "0.320.1", "dev"])
def test_another_version(version: str, tmp_path: Path) -> None:
    """What is hooked into may be elsewhere there, or mean something else; the daemon is told."""
    assert run(tmp_path, f"import vllm\nvllm.__version__ = {version!r}{NOTHING}") == CHEAP
    report = kernels_report((tmp_path / "kernels.json").read_bytes())
    assert report
    assert report.problem == f"axiond's kernels are for vLLM 0.32.x, vLLM's own are used: this is {version}"


def test_another_device(tmp_path: Path) -> None:
    code = f"from vllm.platforms import current_platform\ntype(current_platform).is_cpu = lambda self: False{NOTHING}"
    assert run(tmp_path, code) == CHEAP
    assert not list(tmp_path.iterdir())
