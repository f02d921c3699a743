"""The map of cores that `axiond cpus` shows. Pure."""

from collections.abc import Collection, Iterable

from axiond.report import CoreReport, CpusReport, EngineReport
from axiond.resources.machine import Topology, parse_cpu_list


def cpus_report(topology: Topology, reserved: Collection[int] = (), engines: Iterable[EngineReport] = ()) -> CpusReport:
    """Say of each physical core where it is and who was found to run there."""
    engines = tuple(engines)
    computing = {engine.key: _cpus(engine.compute_cores) for engine in engines}
    running = {engine.key: _cpus(engine.cores) for engine in engines}
    return CpusReport(
        cores=tuple(
            CoreReport(
                cpus=core.cpus,
                package=core.package,
                node=core.node,
                cluster=core.cluster,
                kind="big" if core.is_big else "little",
                barred=core.barred,
                is_reserved=not core.barred and not set(core.cpus).isdisjoint(reserved),
                compute=tuple(key for key, cpus in computing.items() if not cpus.isdisjoint(core.cpus)),
                others=tuple(
                    key for key, cpus in running.items() if not cpus.isdisjoint(core.cpus) and computing[key].isdisjoint(core.cpus)
                ),
            )
            for core in topology.cores
        ),
        node_memory_bytes=dict(topology.nodes),
        quota_cpus=topology.quota_cpus,
        notes={engine.key: engine.core_notes for engine in engines if engine.core_notes},
    )


def _cpus(text: str) -> frozenset[int]:
    return parse_cpu_list(text) if text else frozenset()
