"""What happened, to the log and to everyone who follows: one call for both."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import structlog

from axiond.report import Event

LONGEST_BACKLOG = 1000


class Events:
    """Fan events out to followers. A follower that falls behind loses the oldest, never holds anyone up."""

    def __init__(self) -> None:
        self._followers: set[asyncio.Queue[Event]] = set()
        self._log = structlog.get_logger()

    def emit(self, name: str, level: str = "info", **fields: Any) -> None:
        getattr(self._log, level)(name, **fields)
        event = Event(time=datetime.now(UTC), name=name, fields=fields)
        for queue in self._followers:
            if queue.full():
                queue.get_nowait()
            queue.put_nowait(event)

    @asynccontextmanager
    async def follow(self) -> AsyncIterator[AsyncIterator[Event]]:
        queue: asyncio.Queue[Event] = asyncio.Queue(LONGEST_BACKLOG)
        self._followers.add(queue)

        async def arrivals() -> AsyncIterator[Event]:
            while True:
                yield await queue.get()

        try:
            yield arrivals()
        finally:
            self._followers.discard(queue)
