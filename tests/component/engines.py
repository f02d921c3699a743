"""An engine in memory that does what the test says, and a reconciler around it."""

import asyncio
import itertools
import tempfile
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from axiond.engine.engine import Endpoint
from axiond.errors import EngineStartError, SourceError
from axiond.events import Events
from axiond.manifest.spec import Manifest, Server
from axiond.reconcile.execute import World
from axiond.reconcile.loop import Listener, Reconciler
from axiond.resources.checkpoint import Checkpoint
from axiond.resources.memory import Memory

GIB = 2**30
START_S = 10.0
STOP_S = 2.0


class FakeEngine:
    """Starts in `START_S` virtual seconds; a folder called "broken" makes it fail; `crash()` ends it."""

    cores = "0"
    kernels_text = None

    def __init__(self, key, folder):
        self.key, self.folder = key, folder
        self.pids, self.tail = (), ("a line",)
        self.endpoint = Endpoint(key, key.model, socket=Path("/nowhere"))
        self.calls = []
        self._ended = asyncio.Event()
        self._how = ""

    def kernels(self):
        return self.kernels_text

    async def start(self):
        self.calls.append("start")
        await asyncio.sleep(START_S)
        if self.folder.name == "broken":
            raise EngineStartError(str(self.key), "exited with code 1", ("Traceback", "ValueError: no"))

    async def wait(self):
        await self._ended.wait()
        return self._how

    async def stop(self):
        self.calls.append("stop")
        await asyncio.sleep(STOP_S)

    async def leave(self):
        self.calls.append("leave")
        return True

    def crash(self, how="was killed by SIGKILL"):
        self._how = how
        self._ended.set()


@dataclass
class Fetched:
    folder: Path
    weight_bytes: int = GIB
    note: str = ""
    checkpoint: Checkpoint = field(default_factory=lambda: Checkpoint(stored_bytes=GIB))


@dataclass
class Bench:
    reconciler: Reconciler
    engines: list[FakeEngine]
    realised: list[int]
    rounds: list[tuple[str, bool, bool]]
    events: Events
    fetched: list[str] = field(default_factory=list)
    numbers: itertools.count = field(default_factory=lambda: itertools.count(1))

    def submit(self, *, again=False, server=None, routes=(), **models):
        raw = {"models": {name: {"source": "/models/" + name, **spec} for name, spec in models.items()}, "routes": routes}
        manifest = Manifest.model_validate(raw | ({"server": server} if server else {}))
        return self.reconciler.submit(manifest.model_dump_json(), manifest, again=again)

    async def settled(self, number=0):
        return await self.reconciler.settled(number, timeout_s=3600)

    def engine(self, model):
        """The engine that takes this model's requests."""
        (endpoint,) = self.reconciler.router.table.pools[model].endpoints
        return next(engine for engine in reversed(self.engines) if engine.key == endpoint.key)

    def condition(self, kind):
        return next(condition for condition in self.reconciler.conditions if condition.type == kind)


@asynccontextmanager
async def bench(budget_bytes=1000 * GIB):
    engines, realised, rounds, fetched = [], [], [], []

    def build(key, folder):
        engines.append(FakeEngine(key, folder))
        return engines[-1]

    async def fetch(key, progress):
        source = key.source
        fetched.append(source)
        progress("downloading 10 %")
        await asyncio.sleep(1)
        if source.endswith("missing"):
            raise SourceError(source, "no such folder")
        folder = Path(models) / Path(source).name
        folder.mkdir(exist_ok=True)
        return Fetched(folder)

    events = Events()
    with tempfile.TemporaryDirectory() as models:
        async with asyncio.TaskGroup() as tasks:
            world = World(build, fetch, asyncio.get_running_loop().time, lambda: 0.5)
            listener = Listener(lambda g: realised.append(g.number), lambda text, busy, up: rounds.append((text, busy, up)))
            reconciler = Reconciler(world, events, tasks, Server(), Memory(fixed_bytes=budget_bytes), listener)
            running = tasks.create_task(reconciler.run())
            yield Bench(reconciler, engines, realised, rounds, events, fetched)
            running.cancel()
            await asyncio.wait([running])
            await reconciler.executor.stop_all()
