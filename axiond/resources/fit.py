"""What a manifest's models would take, from checkpoints that lie on this machine already, and whether there is so much."""

from collections.abc import Mapping
from pathlib import Path

from axiond.errors import SourceError
from axiond.manifest.spec import Manifest
from axiond.resources.budget import Room, read_room, share_bytes
from axiond.resources.checkpoint import Checkpoint, read_checkpoint
from axiond.resources.estimate import Prediction, predict, processes_of
from axiond.resources.measured import MeasuredStore
from axiond.resources.sums import node_refusal, refusal
from axiond.sources.source import Folder, parse


def expectations(manifest: Manifest, measured: MeasuredStore) -> Mapping[str, Prediction]:
    """By digest; what is not on this machine yet counts without its weights. Blocks."""
    specs = manifest.models.values()
    processes = processes_of(manifest.server)
    return {spec.digest(): predict(spec, _checkpoint(spec.source), measured.get(spec.digest()), processes) for spec in specs}


def problem(manifest: Manifest) -> str | None:
    """Why the models that are always loaded cannot run together on this machine, were it empty; None if they can. Blocks."""
    expected, room = expectations(manifest, MeasuredStore(manifest.server.state_dir)), read_room()
    eager = {name: (spec.replicas, expected[spec.digest()]) for name, spec in manifest.models.items() if spec.load == "eager"}
    return refusal(eager, empty_budget_bytes(manifest.server.memory_budget, room)) or node_refusal(eager, room.node_bytes)


def empty_budget_bytes(setting: str | int, room: Room) -> int:
    return min(share_bytes(setting, room), room.total_bytes - room.reserve_bytes)


def _checkpoint(source: str) -> Checkpoint | None:
    try:
        place = parse(source)
        folder = place.path.expanduser().absolute() if isinstance(place, Folder) else Path()
    except (SourceError, RuntimeError):
        return None
    return read_checkpoint(folder) if isinstance(place, Folder) and folder.is_dir() else None
