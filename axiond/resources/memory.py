"""What is known of memory at this moment, for every decision about it."""

from axiond.resources.budget import UNLIMITED, Room, budget_bytes
from axiond.resources.measured import MeasuredStore


class Memory:
    """
    The room there is and what engines of each digest took.

    *room* and *used_bytes*, which engines' own pages take, are of one moment. *fixed_bytes* is the budget whatever there is, for tests.
    """

    def __init__(self, measured: MeasuredStore | None = None, room: Room = UNLIMITED, fixed_bytes: int | None = None) -> None:
        self.measured = measured or MeasuredStore()
        self.room, self.used_bytes = room, 0
        self._fixed_bytes = fixed_bytes

    def budget_bytes(self, setting: str | int, promised_bytes: int) -> int:
        """See `budget.budget_bytes()`."""
        if self._fixed_bytes is not None:
            return self._fixed_bytes
        return budget_bytes(setting, self.room, self.used_bytes, promised_bytes)
