"""Tell systemd and the terminal what the daemon is doing."""

import asyncio

from axiond import log
from axiond.events import Events
from axiond.notify import Notifier

HEARTBEAT_S = 5.0


class Announcer:
    """
    Turns rounds into READY, RELOADING and STATUS.

    Ready is said once a generation is served as far as it can be, one model at least, and again after each reload.
    """

    def __init__(self, notifier: Notifier, events: Events) -> None:
        self._notifier, self._events = notifier, events
        self._text, self._is_busy, self._is_calm = "starting", True, False
        self.became_ready = asyncio.Event()

    def after_round(self, text: str, is_busy: bool, is_up: bool) -> None:
        """Hear of a round: what is going on, whether something is on its way, whether any model is served."""
        is_reload = is_busy and self._is_calm and self.became_ready.is_set()
        is_calm = not is_busy and (is_up or self.became_ready.is_set())
        if is_reload:
            self._notifier.reloading(text)
        elif is_calm and not self._is_calm:
            self._notifier.ready(text)
            self.became_ready.set()
        elif text != self._text:
            self._notifier.status(text)
        self._text, self._is_busy, self._is_calm = text, is_busy, is_calm

    def stopping(self) -> None:
        """The end has begun; the heartbeat asks for time for it."""
        self._text, self._is_busy = "ending running requests", True
        self._notifier.stopping(self._text)

    async def heartbeat(self) -> None:
        """While something is on its way, say so now and then, and ask systemd for more time. Runs until cancelled."""
        while True:
            await asyncio.sleep(HEARTBEAT_S)
            if self._is_busy:
                self._notifier.extend(4 * HEARTBEAT_S)
                self._events.emit(log.DAEMON_IS_WAITING, doing=self._text)
