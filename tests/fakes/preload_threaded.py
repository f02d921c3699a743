"""A preload that leaves a second thread behind, with which a fork server must not fork."""

import threading

from tests.fakes.preload import serve

__all__ = ["prepare", "serve"]


def prepare() -> None:
    threading.Thread(target=threading.Event().wait, daemon=True).start()
