"""The probe: native/probe/main.cc built for a machine, asked through its standard input."""

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

import torch
from torch import Tensor

ROOT = Path(__file__).parents[2]
CROSS = ["-DCMAKE_SYSTEM_NAME=Linux", "-DCMAKE_SYSTEM_PROCESSOR=aarch64", "-DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++"]
PATH = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # cmake and ninja are installed beside the interpreter
TYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}


@dataclass(frozen=True)
class Machine:
    """Where a probe runs: on this CPU, or on an emulated one."""

    name: str
    best: str  # the level that has to be found there
    levels: tuple[str, ...]
    qemu_cpu: str | None = None

    def missing(self) -> str | None:
        """Name the tool that this machine needs and that is not installed."""
        tools = ["cmake", "ninja", "g++"] if self.qemu_cpu is None else ["cmake", "ninja", "aarch64-linux-gnu-g++", "qemu-aarch64-static"]
        return next((tool for tool in tools if not shutil.which(tool, path=PATH)), None)

    def command(self) -> list[str]:
        """Build the probe, and return how to start it."""
        folder = ROOT / "build" / ("probe" if self.qemu_cpu is None else "probe-aarch64")
        configure = ["cmake", "-S", ROOT / "native", "-B", folder, "-G", "Ninja", "-DAXIOND_PROBE=ON"]
        for step in ([*configure, *(CROSS if self.qemu_cpu else [])], ["cmake", "--build", folder]):
            done = subprocess.run(step, env=os.environ | {"PATH": PATH}, capture_output=True, text=True, timeout=600)
            assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
        return [*(["qemu-aarch64-static", "-cpu", self.qemu_cpu] if self.qemu_cpu else []), str(folder / "probe")]


EMULATED = (
    Machine("max", "neon_bf16", ("portable", "neon", "neon_dotprod", "neon_i8mm", "neon_bf16"), "max"),
    Machine("neoverse-n1", "neon_dotprod", ("portable", "neon", "neon_dotprod"), "neoverse-n1"),
    Machine("cortex-a53", "neon", ("portable", "neon"), "cortex-a53"),
)


class ProbeError(Exception):
    """The probe answered with an error."""


@dataclass
class Probe:
    """One running probe. Ask it with ask()."""

    command: list[str]
    child: subprocess.Popen[bytes] = field(init=False)

    def __enter__(self) -> Self:
        # Threads that spin for each other hold up everybody on a machine with fewer cores than threads.
        environment = os.environ | {"OMP_WAIT_POLICY": "passive"}
        self.child = subprocess.Popen(self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
        return self

    def __exit__(self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None) -> None:
        self.child.communicate(timeout=30)

    def ask(self, name: str, buffers: tuple[Tensor | None, ...] = (), **values: object) -> tuple[bytes, str]:
        """
        Run one request.

        Returns:
            The result's bytes, and the name of the kernel that made them.

        Raises:
            ProbeError: it refused.
        """
        contents = [b"" if tensor is None else tensor.contiguous().view(torch.uint8).numpy().tobytes() for tensor in buffers]
        words = [name, "sizes=" + ",".join(str(len(content)) for content in contents), *(f"{key}={value}" for key, value in values.items())]
        assert self.child.stdin
        assert self.child.stdout
        self.child.stdin.write(" ".join(words).encode() + b"\n" + b"".join(contents))
        self.child.stdin.flush()
        status, *rest = self.child.stdout.readline().decode().split(maxsplit=2)
        if status != "ok":
            raise ProbeError(" ".join(rest))
        return self.child.stdout.read(int(rest[0])), rest[1].strip()
