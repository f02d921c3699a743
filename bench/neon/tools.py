"""Build what bench/neon_model.py runs, and find or fetch the two tools that few machines have."""

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
CROSS = ("-DCMAKE_SYSTEM_NAME=Linux", "-DCMAKE_SYSTEM_PROCESSOR=aarch64", "-DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++")
# qemu-user-static loads no plugins; llvm before 19 takes another core for neoverse-v2.
PACKAGES = ("qemu-user", "libcapstone4", "liburing2", "llvm-19", "libllvm19")


@dataclass(frozen=True)
class Tools:
    """A folder with the traced program and the plugin, and an environment in which the tools are found."""

    folder: Path
    environment: dict[str, str]

    @property
    def program(self) -> Path:
        return self.folder / "run_kernel"

    @property
    def plugin(self) -> Path:
        return self.folder / "trace_plugin.so"

    def run(self, command: list[str], **more: str) -> str:
        done = subprocess.run(command, env=self.environment | more, capture_output=True, text=True, timeout=600)
        if done.returncode:
            raise RuntimeError(f"{command[0]} exited with {done.returncode}: {done.stderr[-2000:]}")
        return done.stdout


def fetch(folder: Path) -> dict[str, str]:
    """Unpack the Debian packages of the tools into *folder*, without installing them, and return the environment to run them in."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "usr").exists():
        subprocess.run(["apt-get", "download", "-q", *PACKAGES], cwd=folder, check=True, timeout=600)
        for package in folder.glob("*.deb"):
            subprocess.run(["dpkg", "-x", package, folder], check=True)
            package.unlink()
    libraries = next((folder / "usr/lib").glob("*-linux-gnu"))
    return os.environ | {"PATH": f"{folder}/usr/bin:{os.environ['PATH']}", "LD_LIBRARY_PATH": str(libraries)}


def build() -> Tools:
    """Compile the kernels as the test program has them, the program that calls one of them, and the plugin."""
    folder, probe = ROOT / "build/neon-model", ROOT / "build/probe-aarch64"
    found = all(shutil.which(name) for name in ("qemu-aarch64", "llvm-mca-19"))
    tools = Tools(folder, dict(os.environ) if found else fetch(folder / "tools"))
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(
        ["cmake", "-S", ROOT / "native", "-B", probe, "-G", "Ninja", "-DAXIOND_PROBE=ON", *CROSS], check=True, stdout=subprocess.DEVNULL
    )
    subprocess.run(["cmake", "--build", probe], check=True, stdout=subprocess.DEVNULL)
    objects = probe / "CMakeFiles/probe.dir"
    linear = [str(path) for path in sorted((objects / "linear").glob("*.o")) if "_neon" in path.name]
    subprocess.run(
        ["aarch64-linux-gnu-g++", "-std=c++17", "-O2", "-static", HERE / "run_kernel.cc", objects / "isa.cc.o",
         objects / "linear/choose.cc.o", objects / "linear/portable.cc.o", *linear, "-o", tools.program], check=True,
    )  # fmt: skip
    subprocess.run(["gcc", "-O2", "-shared", "-fPIC", "-o", tools.plugin, HERE / "trace_plugin.c"], check=True)
    return tools
