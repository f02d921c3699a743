"""What a worker says about its kernels, and what the daemon understands of it. Each worker is a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from axiond.monitor import kernels_report
from axiond.report import KernelOp, KernelsReport, LeftLayers

NO_NATIVE = "import sys; sys.modules['axiond.kernels._native'] = None\n"


def run(folder: Path, code: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run *code* as in the engine of *folder*."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("AXIOND_")}
    code = f"import logging; logging.basicConfig(level='INFO')\nfrom axiond.kernels import active\n{code}"
    return subprocess.run(
        [sys.executable, "-c", code], env=clean | {"AXIOND_ENGINE": str(folder)} | environ, capture_output=True, text=True, check=False
    )


def said(folder: Path) -> KernelsReport | None:
    path = folder / "kernels.json"
    return kernels_report(path.read_bytes() if path.exists() else None)


def test_layers_are_counted_and_said_once(tmp_path: Path) -> None:
    done = run(tmp_path, "for i in 1, 2: active.took('bf16'), active.left('lm_head', 'it is large')", AXIOND_FORCE_ISA="portable")
    report = said(tmp_path)
    assert report
    (op,) = report.ops
    assert (op.op, op.layers, op.isa) == ("bf16", 2, "portable")
    assert op.why.startswith("AXIOND_FORCE_ISA is portable; this CPU has ")
    assert op.decode.endswith("_portable")
    assert op.prefill.endswith("_portable")
    assert report.left == (LeftLayers(what="lm_head", reason="it is large", layers=2),)
    assert done.stderr.splitlines() == [
        "INFO:vllm.axiond:axiond: bf16 runs on portable",
        "INFO:vllm.axiond:axiond: lm_head left to vLLM: it is large",
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["kernels.json"]


def test_an_operation_without_a_linear_kernel_is_counted_too(tmp_path: Path) -> None:
    run(tmp_path, "active.took('rms_norm')", AXIOND_FORCE_ISA="portable")
    report = said(tmp_path)
    assert report
    (op,) = report.ops
    assert op == KernelOp(op="rms_norm", layers=1, isa="portable", why=op.why)
    assert op.why.startswith("AXIOND_FORCE_ISA is portable; this CPU has ")


def test_a_native_module_that_does_not_load_is_a_problem_and_no_failure(tmp_path: Path) -> None:
    done = run(tmp_path, f"{NO_NATIVE}assert active.native() is None; assert active.is_better_left('w4a8')")
    report = said(tmp_path)
    assert report
    assert report.problem.startswith("axiond's kernels could not be loaded, vLLM's own are used: ")
    assert "_native" in report.problem
    assert done.stderr.strip() == f"WARNING:vllm.axiond:{report.problem}"
    assert done.returncode == 0


def test_an_instruction_set_that_the_cpu_lacks_is_an_error(tmp_path: Path) -> None:
    done = run(tmp_path, "active.native()", AXIOND_FORCE_ISA="sve")
    assert "ValueError: AXIOND_FORCE_ISA=sve: there is no such level" in done.stderr


def test_the_plain_kernel_is_better_left_unless_somebody_insists(tmp_path: Path) -> None:
    """Forced to it, every CPU has only the plain one."""
    code = "ops = active.native(); import os; del os.environ['AXIOND_FORCE_ISA']; print(active.is_better_left('w4a8'))"
    assert run(tmp_path, code, AXIOND_FORCE_ISA="portable").stdout == "True\n"
    assert run(tmp_path, "print(active.is_better_left('w4a8'))", AXIOND_FORCE_ISA="portable").stdout == "False\n"


def test_nothing_is_written_where_no_daemon_waits(tmp_path: Path) -> None:
    done = run(tmp_path, "active.took('rms_norm'); active.left('x', 'y')", AXIOND_ENGINE="")
    assert done.returncode == 0
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_gone_costs_nothing(tmp_path: Path) -> None:
    assert run(tmp_path / "gone", "active.took('rms_norm')").returncode == 0


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b'{"ops": [{"op": 1}]}', b"\xff"])
def test_a_report_that_is_none_is_a_problem(text: bytes) -> None:
    assert kernels_report(text) == KernelsReport(problem="its report about kernels cannot be read")


def test_no_report_is_no_report() -> None:
    assert kernels_report(None) is None
