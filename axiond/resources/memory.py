"""What is known of memory at this moment, for every decision about it."""

from axiond.resources.budget import UNLIMITED, Room, budget_bytes
from axiond.resources.measured import MeasuredStore


class Memory:
    """
    The room there is and what engines of each digest took.

    *room* and *used_bytes*, which engines' own pages take, are of one moment. *most_bytes* bounds the budget whatever there is.
    """

    def __init__(self, measured: MeasuredStore | None = None, room: Room = UNLIMITED, most_bytes: int | None = None) -> None:
        self.measured = measured or MeasuredStore()
        self.room, self.used_bytes = room, 0
        self._most_bytes = most_bytes

    def budget_bytes(self, setting: str | int, promised_bytes: int) -> int:
        """See `budget.budget_bytes()`."""
        budget = budget_bytes(setting, self.room, self.used_bytes, promised_bytes)
        return budget if self._most_bytes is None else min(budget, self._most_bytes)
