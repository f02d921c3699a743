"""Tell systemd and the terminal what the daemon is doing."""

import asyncio

from axiond import log
from axiond.events import Events
from axiond.notify import Notifier

HEARTBEAT_S = 5.0


class Announcer:
    """
    Turns rounds into READY, RELOADING and STATUS.

    Ready is said once a generation is served as far as it can be, and again after each reload.
    """

    def __init__(self, notifier: Notifier, events: Events) -> None:
        self._notifier, self._events = notifier, events
        self._text, self._is_busy = "starting", True
        self.became_ready = asyncio.Event()

    def after_round(self, text: str, is_busy: bool) -> None:
        was_busy, self._is_busy = self._is_busy, is_busy
        if is_busy and not was_busy and self.became_ready.is_set():
            self._notifier.reloading(text)
        elif not is_busy and was_busy:
            self._notifier.ready(text)
            self.became_ready.set()
        elif text != self._text:
            self._notifier.status(text)
        self._text = text

    async def heartbeat(self) -> None:
        """While something is on its way, say so now and then, and ask systemd for more time. Runs until cancelled."""
        while True:
            await asyncio.sleep(HEARTBEAT_S)
            if self._is_busy:
                self._notifier.extend(4 * HEARTBEAT_S)
                self._events.emit(log.DAEMON_IS_WAITING, doing=self._text)
