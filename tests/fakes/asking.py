"""Ask a router for an engine as the gateway does."""

from collections.abc import Collection

from axiond.reconcile.state import EngineKey
from axiond.routing.router import Router
from axiond.routing.ticket import Asked, Lease


async def lease(router: Router, name: str = "m", client: str = "", failed: Collection[EngineKey] = ()) -> Lease:
    """A lease, waited for as the gateway does; the ticket's time is the only limit."""
    found = router.lease(Asked(name, 0.0, client), failed)
    if isinstance(found, Lease):
        return found
    with found:
        if had := await found.wait(found.most_s):
            return had
        raise found.late()
