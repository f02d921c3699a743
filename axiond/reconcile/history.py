"""How often each model was loaded and unloaded, and why it was last."""

import time
from collections import Counter
from dataclasses import dataclass, field

from axiond.reconcile.actions import Action, Cause, Drain, Start


@dataclass(frozen=True, slots=True)
class Unload:
    reason: str
    at_s: float


@dataclass(slots=True)
class History:
    """*loads* and *unloads* count engines; *last* has wall times in seconds."""

    loads: Counter[str] = field(default_factory=Counter)
    unloads: Counter[tuple[str, Cause]] = field(default_factory=Counter)
    last: dict[str, Unload] = field(default_factory=dict)

    def note(self, action: Action) -> None:
        match action:
            case Start(key):
                self.loads[key.model] += 1
            case Drain(key, cause, reason):
                self.unloads[key.model, cause] += 1
                self.last[key.model] = Unload(reason, time.time())
            case _:
                pass
