"""Domains made ready for a manifest, around an embedding model that does what the test says."""

import asyncio
import gc
import threading
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from axiond.errors import DomainsError, SourceError
from axiond.manifest.spec import Manifest
from axiond.semantic.prepare import Semantics


class Model:
    """An embedding model."""


@dataclass(eq=False)
class Index:
    domains: object
    encoder: Model | None


@dataclass
class World:
    """*gate* holds up every fetch until it is set; *hold* every build with a model."""

    missing: set[str] = field(default_factory=set)
    fetched: list[str] = field(default_factory=list)
    loaded: list[str] = field(default_factory=list)
    built: int = 0
    at_once: int = 0
    most_at_once: int = 0
    asked: asyncio.Event = field(default_factory=asyncio.Event)
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    hold: threading.Event = field(default_factory=threading.Event)
    building: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self):
        self.gate.set()
        self.hold.set()
        self.semantics = Semantics(self.fetch, None, self.load, self.build)

    async def fetch(self, source):
        self.fetched.append(source)
        self.asked.set()
        await self.gate.wait()
        if source in self.missing:
            raise SourceError(source, "there is no such folder")
        return Path(source)

    def load(self, folder):
        self.loaded.append(str(folder))
        if folder.name == "odd":
            raise RuntimeError("no memory")
        return Model()

    def build(self, domains, semantic, encoder):
        self.at_once += 1
        self.most_at_once = max(self.at_once, self.most_at_once)
        self.building.set()
        assert encoder is None or self.hold.wait(10)
        self.at_once -= 1
        self.built += 1
        if "bad" in domains:
            raise ValueError("no text")
        return Index(domains, encoder)


@pytest.fixture
async def world():
    world = World()
    yield world
    world.hold.set()
    world.gate.set()
    await world.semantics.close()


def manifest(model="/m", **domains):
    semantic = {"embedding_model": model} if model else {}
    return Manifest.model_validate({"semantic": semantic, "domains": {name: {"examples": [text]} for name, text in domains.items()}})


async def test_without_domains_there_is_nothing_to_do(world):
    assert await world.semantics.prepare(manifest()) is None
    assert world.fetched == []


async def test_equal_domains_share_an_index_and_all_share_the_embedding_model(world):
    first = await world.semantics.prepare(manifest(code="x"))
    assert await world.semantics.prepare(manifest(code="x")) is first
    second = await world.semantics.prepare(manifest(code="y"))
    assert second is not first
    assert second.encoder is first.encoder
    assert (world.built, world.loaded) == (2, ["/m"])


async def test_what_no_generation_holds_is_let_go(world):
    first = await world.semantics.prepare(manifest(code="x"))
    del first
    gc.collect()
    await world.semantics.prepare(manifest(code="x"))
    assert (world.built, len(world.loaded)) == (2, 2)


async def test_keywords_alone_load_nothing(world):
    index = await world.semantics.prepare(manifest(None, code="x"))
    assert index.encoder is None
    assert world.fetched == []


@pytest.mark.parametrize(
    ("source", "domain", "at", "says"),
    [
        ("/gone", "code", ("semantic", "embedding_model"), "there is no such folder"),
        ("/odd", "code", ("semantic", "embedding_model"), "no memory"),
        ("/m", "bad", ("domains",), "no text"),
    ],
    ids=["missing", "not-loadable", "not-embeddable"],
)
async def test_what_cannot_be_prepared_is_told_with_its_place_and_tried_again(world, source, domain, at, says):
    world.missing = {"/gone"}
    for _ in range(2):
        with pytest.raises(DomainsError, match=says) as caught:
            await world.semantics.prepare(manifest(source, **{domain: "x"}))
        assert caught.value.at == at
        assert caught.value.remedy
        assert not caught.value.is_unfinished
    assert set(world.fetched) == {source}


@pytest.mark.parametrize("how", ["timeout", "cancelled"])
async def test_who_gives_up_waiting_leaves_the_work_to_the_next(world, how):
    world.gate.clear()
    if how == "timeout":
        with pytest.raises(DomainsError, match="not ready after") as caught:
            await world.semantics.prepare(manifest(code="x"), within_s=0.01)
        assert caught.value.is_unfinished
    else:
        waiting = asyncio.create_task(world.semantics.prepare(manifest(code="x")))
        await world.asked.wait()
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
    joining = asyncio.create_task(world.semantics.prepare(manifest(code="x")))
    await asyncio.sleep(0)
    world.gate.set()
    assert (await joining).encoder
    assert world.fetched == ["/m"]


async def test_one_is_built_at_a_time_and_a_fetch_holds_up_nobody(world):
    world.gate.clear()
    fetching = asyncio.create_task(world.semantics.prepare(manifest("/slow", code="x")))
    plain = [asyncio.create_task(world.semantics.prepare(manifest(None, code=str(i)))) for i in range(5)]
    await asyncio.gather(*plain)
    assert not fetching.done()
    world.gate.set()
    assert await fetching
    assert world.most_at_once == 1


async def test_a_daemon_starts_with_keywords_alone_where_the_model_is_missing(world):
    world.missing = {"/gone"}
    prepared = await world.semantics.prepare_anyhow(manifest("/gone", code="x"))
    assert prepared.index.encoder is None
    assert "there is no such folder" in prepared.lack
    assert "leave it out" in prepared.lack
    assert (await world.semantics.prepare_anyhow(manifest(code="x"))).lack == ""


async def test_keywords_alone_wait_for_no_model(world):
    world.hold.clear()
    slow = asyncio.create_task(world.semantics.prepare(manifest(code="x")))
    assert await asyncio.to_thread(world.building.wait, 5)
    async with asyncio.timeout(5):
        assert (await world.semantics.prepare(manifest(None, code="x"))).encoder is None
    assert not slow.done()


async def test_a_daemon_starts_without_domains_where_nothing_can_be_made_of_them(world):
    prepared = await world.semantics.prepare_anyhow(manifest(bad="x"))
    assert prepared.index is None
    assert "no text" in prepared.lack


async def test_close_leaves_nothing_running(world):
    world.gate.clear()
    waiting = asyncio.create_task(world.semantics.prepare(manifest(code="x")))
    await world.asked.wait()
    await world.semantics.close()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert [task for task in asyncio.all_tasks() if task.get_name() == "prepare domains"] == []
