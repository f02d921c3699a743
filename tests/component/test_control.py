"""What the daemon makes of its manifest file when domains have to be prepared, around the loop, in virtual time."""

import asyncio
import time
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from axiond.boot import read_boot
from axiond.control import Control
from axiond.errors import ManifestError, SourceError
from axiond.manifest.load import parse
from axiond.manifest.spec import Manifest
from axiond.manifest.store import LastGood
from axiond.report import ConditionType
from axiond.routereport import RouteQuestion
from axiond.routing.rules import Rules
from axiond.semantic.index import build_index
from axiond.semantic.prepare import Semantics
from tests.component.engines import Bench, bench

pytestmark = pytest.mark.looptime

MODELS = '[models.a]\nsource = "/models/a"\n'


def text(model="/here", keyword="python"):
    return f'{MODELS}[semantic]\nembedding_model = "{model}"\n[domains.code]\nkeywords = ["{keyword}"]\n'


class Encoder:
    """Loads, and is not asked."""


def build(domains, semantic, encoder):
    return replace(build_index(domains, semantic, None), encoder=encoder)


@dataclass
class Desk:
    bench: Bench
    control: Control
    store: LastGood
    path: Path
    missing: set = field(default_factory=set)
    slow: dict = field(default_factory=dict)
    asked: asyncio.Event = field(default_factory=asyncio.Event)
    fetched: list = field(default_factory=list)

    async def fetch(self, source):
        self.fetched.append(source)
        self.asked.set()
        if source in self.slow:
            await self.slow[source].wait()
        if source in self.missing:
            raise SourceError(source, "there is no such folder")
        return Path(source)

    async def start(self):
        await self.control.start(read_boot(self.path, self.store))

    def words(self, kind):
        condition = self.bench.condition(kind)
        return condition.status, condition.message

    @property
    def keywords(self):
        """Those that domains are told by."""
        return self.bench.reconciler.router.table.rules.index.domains["code"].keywords


@asynccontextmanager
async def desk(tmp_path, written=None):
    async with bench() as around:
        path = tmp_path / "axiond.toml"
        path.write_text(written or text())
        at = Desk(around, None, LastGood(tmp_path / "state", path), path)
        semantics = Semantics(at.fetch, None, lambda folder: Encoder(), build)
        at.control = Control(path, around.reconciler, around.events, None, None, semantics)
        yield at
        await semantics.close()


def keep(at, written):
    """Make *written* the last good manifest."""
    loaded = parse(written.encode(), at.path)
    at.store.save(loaded.manifest, 7, loaded.etag)


async def test_a_missing_model_is_refused_with_its_place_and_changes_nothing(tmp_path):
    async with desk(tmp_path) as at:
        await at.start()
        await at.control.reload(wait=True)
        at.missing, before = {"/gone"}, at.bench.reconciler.router.table
        at.path.write_text(text("/gone", "rust"))
        report = await at.control.reload(wait=True)
        assert not report.is_accepted
        assert f"{at.path}:4:1: semantic.embedding_model: " in report.message
        assert "there is no such folder" in report.message
        assert "leave it out" in report.message
        assert at.bench.reconciler.router.table is before
        at.missing = set()
        assert (await at.control.reload(wait=True)).is_realised
        assert at.keywords == ("rust",)


async def test_a_put_with_a_missing_model_leaves_the_file(tmp_path):
    async with desk(tmp_path) as at:
        await at.start()
        at.missing, before = {"/gone"}, at.path.read_bytes()
        with pytest.raises(ManifestError, match="no such folder"):
            await at.control.put_manifest(text("/gone").encode(), None)
        assert at.path.read_bytes() == before
        assert (await at.control.put_manifest(text(keyword="rust").encode(), None, wait=True)).is_realised
        assert at.fetched.count("/here") == 1
        assert at.keywords == ("rust",)


async def test_a_plan_with_a_missing_model_is_refused(tmp_path):
    async with desk(tmp_path) as at:
        await at.start()
        at.missing = {"/gone"}
        with pytest.raises(ManifestError, match="no such folder"):
            await at.control.plan(text("/gone").encode(), is_json=False)


async def test_a_newer_manifest_overtakes_one_whose_model_is_slow(tmp_path):
    async with desk(tmp_path) as at:
        await at.start()
        at.slow = {"/slow": asyncio.Event()}
        at.path.write_text(text("/slow", "slow"))
        at.asked.clear()
        slow = asyncio.create_task(at.control.reload(wait=True))
        await at.asked.wait()
        at.path.write_text(text(keyword="quick"))
        assert (await at.control.reload(wait=True)).is_realised
        number = at.bench.reconciler.newest_number
        at.slow["/slow"].set()
        assert (await slow).generation == number
        assert at.keywords == ("quick",)


async def test_an_edit_does_not_wait_for_the_model_of_the_one_before(tmp_path):
    async with desk(tmp_path) as at:
        await at.start()
        following = asyncio.create_task(at.control.run())
        at.slow = {"/slow": asyncio.Event()}
        at.path.write_text(text("/slow", "slow"))
        at.asked.clear()
        at.control.look()
        await at.asked.wait()
        began_s = asyncio.get_running_loop().time()
        at.path.write_text(text(keyword="quick"))
        at.control.look()
        assert (await at.bench.settled(2)).is_realised
        assert asyncio.get_running_loop().time() - began_s < 30
        assert at.keywords == ("quick",)
        following.cancel()


async def test_a_look_that_shall_try_again_is_not_overtaken_by_one_that_need_not(tmp_path):
    async with desk(tmp_path) as at:
        at.slow = {"/here": asyncio.Event()}
        following = asyncio.create_task(at.control.run())
        await at.start()
        await asyncio.sleep(5)
        at.control.look()
        await asyncio.sleep(5)
        at.slow["/here"].set()
        assert (await at.bench.settled(2)).is_realised
        assert at.words(ConditionType.DEGRADED)[0] == "False"
        following.cancel()


async def test_a_file_that_has_not_changed_is_not_prepared_again(tmp_path):
    async with desk(tmp_path) as at:
        await at.start()
        assert at.fetched == ["/here"]
        await at.control.reload(again=False)
        await at.control.reload(again=True)
        assert at.fetched == ["/here"]


async def test_a_daemon_whose_model_is_gone_serves_with_keywords_and_says_so_until_it_is_back(tmp_path):
    async with desk(tmp_path) as at:
        at.missing = {"/here"}
        await at.start()
        await at.bench.settled(1)
        assert at.bench.reconciler.serving.number == 1
        assert at.keywords == ("python",)
        status, message = at.words(ConditionType.DEGRADED)
        assert status == "True"
        assert "keywords alone tell domains" in message
        assert "no such folder" in message
        assert at.words(ConditionType.ACCEPTED)[0] == "True"
        await at.control.reload(again=False)
        assert at.words(ConditionType.ACCEPTED)[0] == "True"
        at.missing = set()
        assert (await at.control.reload(wait=True)).generation == 2
        assert at.words(ConditionType.DEGRADED) == ("False", "")


async def test_a_daemon_whose_model_is_slow_starts_without_and_takes_it_when_it_is_there(tmp_path):
    async with desk(tmp_path) as at:
        at.slow = {"/here": asyncio.Event()}
        following = asyncio.create_task(at.control.run())
        await at.start()
        await at.bench.settled(1)
        assert "not ready after 10 s" in at.words(ConditionType.DEGRADED)[1]
        at.slow["/here"].set()
        assert (await at.bench.settled(2)).is_realised
        assert at.words(ConditionType.DEGRADED)[0] == "False"
        assert at.fetched == ["/here"]
        following.cancel()


async def test_a_last_good_manifest_that_has_all_it_needs_is_better_than_a_new_one_that_has_not(tmp_path):
    async with desk(tmp_path, text("/gone", "rust")) as at:
        keep(at, text())
        at.missing = {"/gone"}
        await at.start()
        await at.bench.settled(8)
        assert at.bench.reconciler.serving.number == 7
        assert at.keywords == ("python",)
        assert "no such folder" in at.words(ConditionType.ACCEPTED)[1]


async def test_a_new_manifest_whose_model_is_slow_comes_after_the_last_good_one(tmp_path):
    async with desk(tmp_path, text("/slow", "rust")) as at:
        keep(at, text())
        at.slow = {"/slow": asyncio.Event()}
        following = asyncio.create_task(at.control.run())
        await at.start()
        await at.bench.settled(8)
        assert at.keywords == ("python",)
        at.slow["/slow"].set()
        assert (await at.bench.settled(9)).is_realised
        assert at.keywords == ("rust",)
        following.cancel()


async def test_a_last_good_manifest_that_lacks_as_much_gives_way(tmp_path):
    async with desk(tmp_path, text("/gone", "rust")) as at:
        keep(at, text("/gone"))
        at.missing = {"/gone"}
        await at.start()
        await at.bench.settled(8)
        assert at.bench.reconciler.serving.number == 8
        assert at.keywords == ("rust",)


async def test_nothing_is_read_before_the_daemon_has_started_from_what_there_is(tmp_path):
    async with desk(tmp_path) as at:
        early = asyncio.create_task(at.control.reload(wait=True))
        await asyncio.sleep(5)
        assert not early.done()
        await at.start()
        assert (await early).is_realised


async def test_thousands_of_rules_are_compiled_off_the_event_loop(tmp_path):
    routes = "".join(f'[[routes]]\nname = "r{i}"\nwhen = {{ regex = ["a{i}+b"] }}\nmodels = ["a"]\n' for i in range(2000))
    async with desk(tmp_path, MODELS + routes) as at:
        boot, began_s = read_boot(at.path, at.store), time.thread_time()
        await at.control.start(boot)
        started_s = time.thread_time() - began_s
        began_s = time.thread_time()
        Rules.of(at.bench.reconciler.desired.manifest, None)
        compiling_s = time.thread_time() - began_s
        assert started_s < compiling_s / 2


async def test_explaining_wakes_and_counts_nothing(tmp_path):
    lazy = MODELS + 'load = "lazy"\n' + text()[len(MODELS) :]
    async with desk(tmp_path, lazy) as at:
        assert (await at.control.explain(RouteQuestion(body={}))).refusal[0] == 503
        await at.start()
        await at.control.reload(wait=True)
        router = at.bench.reconciler.router
        before = router.demand()
        found = await at.control.explain(RouteQuestion(model="a", prompt="python"))
        assert (found.generation, found.models, found.refusal) == (1, ("a",), None)
        await asyncio.sleep(60)
        assert router.demand() == before
        assert at.bench.engines == []


def test_the_store_keeps_every_key(tmp_path):
    raw = {"server": {"api_keys": ["k1"], "key_groups": {"g": ["k2"]}}, "routes": [{"name": "r", "when": {"api_key": ["k3"]}}]}
    manifest = Manifest.model_validate(raw)
    store = LastGood(tmp_path, tmp_path / "axiond.toml")
    store.save(manifest, 1, "e")
    assert store.load()[0].manifest == manifest
