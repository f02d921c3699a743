"""Who is next: round robin between clients, first come first served within one. Pure."""

from collections import OrderedDict
from collections.abc import Hashable, Iterator
from typing import Generic, TypeVar

Item = TypeVar("Item", bound=Hashable)


class FairQueue(Generic[Item]):
    """
    Items of many clients, in one order that every client has an equal part in.

    Each client has a lane. A lane that gave an item goes behind the others, and so does the lane of a new client; so an
    item with k of its own client before it waits for at most k + 1 items of any other.
    """

    def __init__(self) -> None:
        self._lanes: OrderedDict[str, dict[Item, None]] = OrderedDict()
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Item]:
        """In the order in which `pop()` would give them."""
        lanes = [list(lane) for lane in self._lanes.values()]
        for rank in range(max(map(len, lanes), default=0)):
            yield from (lane[rank] for lane in lanes if rank < len(lane))

    def push(self, client: str, item: Item) -> None:
        self._lanes.setdefault(client, {})[item] = None
        self._count += 1

    def pop(self) -> Item:
        """Take the next. Raises StopIteration when there is none."""
        client = next(iter(self._lanes))
        item = next(iter(self._lanes[client]))
        self._lanes.move_to_end(client)
        self.remove(client, item)
        return item

    def remove(self, client: str, item: Item) -> None:
        """Take *item* out, wherever it is. Raises KeyError when it is not there."""
        lane = self._lanes[client]
        del lane[item]
        self._count -= 1
        if not lane:
            del self._lanes[client]

    def position(self, client: str, item: Item | None = None) -> int:
        """How many `pop()` it takes until *item* of *client* comes, or a new one of *client*; 1 is the next."""
        own = self._lanes.get(client, {})
        rank = len(own) if item is None else list(own).index(item)
        before, is_before = rank, True
        for other, lane in self._lanes.items():
            if other == client:
                is_before = False
            else:
                before += min(len(lane), rank + is_before)
        return before + 1

    def longest(self) -> tuple[str, int]:
        """The client with the most items, and how many; of equals the one whose turn is last."""
        return max(((client, len(lane)) for client, lane in reversed(self._lanes.items())), key=lambda found: found[1], default=("", 0))

    def latest(self, client: str) -> Item:
        """The item of *client* that came last."""
        return next(reversed(self._lanes[client]))

    def count(self, client: str) -> int:
        return len(self._lanes.get(client, ()))
