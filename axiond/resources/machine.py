"""A machine as the planning of cores sees it, and the kernel's notation for sets of CPUs. Pure."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

Barred = Literal["", "not allowed", "isolated"]


@dataclass(frozen=True, slots=True)
class Core:
    """
    A physical core.

    *cpus* are its logical CPUs that may be used, lowest first; all of them if it is *barred*. *cluster* is the lowest CPU
    of those on its node that share its last-level cache, of the whole node if nothing is shared.
    """

    cpus: tuple[int, ...]
    package: int = 0
    node: int = 0
    cluster: int = 0
    is_big: bool = True
    barred: Barred = ""


@dataclass(frozen=True, slots=True)
class Topology:
    """
    What there is to plan with.

    *nodes* are those with memory that may be used, and its bytes. *quota_cpus* is the time of how many CPUs the control
    groups grant; None: of all.
    """

    cores: tuple[Core, ...]
    nodes: Mapping[int, int] = field(default_factory=dict)
    quota_cpus: float | None = None

    @property
    def usable(self) -> tuple[Core, ...]:
        return tuple(core for core in self.cores if not core.barred)

    @property
    def allowed(self) -> frozenset[int]:
        """The logical CPUs that may be used at all, isolated ones too."""
        return frozenset(cpu for core in self.cores if core.barred != "not allowed" for cpu in core.cpus)


def parse_cpu_list(text: str) -> frozenset[int]:
    """Read the kernel's notation: "0-3,8" is 0, 1, 2, 3 and 8."""
    ranges = [part.split("-") for part in text.split(",")]
    return frozenset(core for bounds in ranges for core in range(int(bounds[0]), int(bounds[-1]) + 1))


def format_cpu_list(cores: Iterable[int]) -> str:
    """Write the kernel's notation: 0, 1, 2, 3 and 8 is "0-3,8"."""
    runs: list[list[int]] = []
    for core in sorted(cores):
        if runs and core == runs[-1][-1] + 1:
            runs[-1][1:] = [core]
        else:
            runs.append([core])
    return ",".join("-".join(map(str, run)) for run in runs)
