import platform
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.native.probe import EMULATED, Machine, Probe


def host() -> Machine:
    """This CPU. What it can run is asked of the probe itself, since only the emulated CPUs are known beforehand."""
    return Machine("host", "", ())


MACHINES = (host(), *(EMULATED if platform.machine() == "x86_64" else ()))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The first test of a machine waits for the compiler."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.timeout(600))


@pytest.fixture(scope="session", params=MACHINES, ids=lambda machine: machine.name)
def machine(request: pytest.FixtureRequest) -> Machine:
    found: Machine = request.param
    if missing := found.missing():
        pytest.skip(f"{missing} is not installed: the README names the packages")
    return found


@pytest.fixture(scope="session")
def probe(machine: Machine) -> Iterator[Probe]:
    with Probe(machine.command()) as running:
        yield running


@pytest.fixture(scope="session")
def levels(machine: Machine, probe: Probe) -> tuple[str, ...]:
    """The levels that this machine can run, the highest last."""
    if machine.levels:
        return machine.levels
    chains = [("portable", "avx2", "avx512vnni", "avx512bf16"), ("portable", "neon", "neon_dotprod", "neon_i8mm", "neon_bf16")]
    best = probe.ask("isa", isa="")[1]
    return next(chain[: chain.index(best) + 1] for chain in chains if best in chain)
