"""The whole daemon as a child process around fake engines."""

import asyncio
import os
import signal

import aiohttp
import pytest

from axiond.client import AdminClient
from axiond.errors import DaemonRefused
from tests.fakes.remains import all_ended, is_alive
from tests.fakes.running import FAKE, Running, chat, running

SMALL = {"kv_cache": "64MiB", "drain_grace_s": 5}


def models(folder, **changes):
    return {"models": {name: {"source": str(folder / "model"), **SMALL, **spec} for name, spec in (changes or {"a": {}}).items()}}


def engine_pid(answer):
    return int(answer["choices"][0]["message"]["content"].split(":")[0])


async def test_serves_and_leaves_nothing_at_sigterm(folder, http):
    async with running(folder, models(folder, a={}, b={"replicas": 2})) as daemon:
        assert (await chat(http, daemon.base, "a"))[0] == 200
        pids = [pid for engine in (await daemon.status()).engines for pid in engine.pids]
        assert len(pids) == 6
        assert await daemon.stop() == 0
    assert not any(map(is_alive, pids))
    assert list((folder / "r" / "e").iterdir()) == []
    assert not daemon.socket.exists()


async def test_sigkill_of_the_daemon_leaves_no_engine_and_the_next_one_starts_clean(folder, http):
    async with running(folder, models(folder)) as daemon:
        pids = [pid for engine in (await daemon.status()).engines for pid in engine.pids]
        await daemon.stop(signal.SIGKILL)
        await all_ended(pids, within_s=10)
        await daemon.start(*FAKE)
        await daemon.ready()
        assert (await chat(http, daemon.base, "a"))[0] == 200
        assert len(list((folder / "r" / "e").iterdir())) == 1


async def test_saved_file_is_followed_without_being_asked(folder, http):
    async with running(folder, models(folder)) as daemon:
        before = engine_pid((await chat(http, daemon.base, "a"))[1])
        daemon.manifest["models"]["a"]["aliases"] = ["z"]
        daemon.write()
        await daemon.settled(2)
        assert engine_pid((await chat(http, daemon.base, "z"))[1]) == before
        daemon.manifest["models"]["a"]["max_num_seqs"] = 3
        daemon.write()
        status = await daemon.settled(3)
        assert status.serving_generation == 3
        assert engine_pid((await chat(http, daemon.base, "a"))[1]) != before


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"engine_args": {"exit-at-start": "no such kernel"}}, "RuntimeError: no such kernel"),
        ({"source": "/nowhere/at/all"}, "/nowhere/at/all"),
        ({"golden": {"prompt": "capital?", "expect": "Paris"}, "max_num_seqs": 9}, "Paris"),
        ({"engine_args": {"fail-probe": True}, "start_timeout_s": 1.0}, "was not ready within 1 s"),
    ],
    ids=["dies-at-start", "no-source", "golden-prompt", "never-ready"],
)
async def test_manifest_that_cannot_be_realised_leaves_the_last_good_one_serving(folder, http, change, says):
    async with running(folder, models(folder)) as daemon:
        before = engine_pid((await chat(http, daemon.base, "a"))[1])
        daemon.manifest["models"]["a"] |= change
        daemon.write()
        report = await daemon.reloaded()
        assert not report.is_realised
        assert says in report.message
        assert engine_pid((await chat(http, daemon.base, "a"))[1]) == before
        status = await daemon.status()
        assert (status.generation, status.serving_generation) == (2, 1)
        assert status.rejection
        assert says in status.rejection.reason
        assert len(status.engines) == 1


async def test_broken_file_at_boot_serves_the_last_good_manifest_and_says_so(folder, http):
    async with running(folder, models(folder)) as daemon:
        await daemon.stop()
        daemon.path.write_text("[models.a\n")
        await daemon.start(*FAKE)
        report = await daemon.ready()
        assert (await chat(http, daemon.base, "a"))[0] == 200
        report = await daemon.reloaded()
        assert not report.is_accepted
        assert f"{daemon.path}:1:" in report.message
        daemon.write()
        assert (await daemon.reloaded()).is_realised


async def test_broken_file_at_first_boot_ends_with_every_problem(folder):
    daemon = Running(folder, {})
    daemon.path.write_text('[models.a]\nsorce = "x"\ndtype = "int3"\n')
    await daemon.start(*FAKE)
    async with asyncio.timeout(20):
        assert await daemon.process.wait() == 1
    assert f"{daemon.path}:2:1" in daemon.log
    assert f"{daemon.path}:3:" in daemon.log
    assert "Traceback" not in daemon.log


async def test_boot_with_an_edit_that_fails_falls_back_to_the_last_good_manifest(folder, http):
    async with running(folder, models(folder)) as daemon:
        await daemon.stop()
        daemon.manifest["models"]["a"]["engine_args"] = {"exit-at-start": "no such kernel"}
        daemon.write()
        await daemon.start(*FAKE)
        await daemon.ready()
        assert (await chat(http, daemon.base, "a"))[0] == 200
        conditions = {condition.type: condition.status for condition in (await daemon.status()).conditions}
        assert conditions["RolledBack"] == "True"
        assert conditions["Ready"] == "True"


async def test_crashed_engine_comes_back_and_requests_hear_when(folder, http):
    async with running(folder, models(folder)) as daemon:
        pid = engine_pid((await chat(http, daemon.base, "a"))[1])
        os.kill(pid, signal.SIGKILL)
        async with asyncio.timeout(20):
            while (answer := await chat(http, daemon.base, "a"))[0] != 200:
                assert answer[0] == 503
                assert answer[1]["error"]["code"]
        assert engine_pid(answer[1]) != pid


async def test_put_replaces_the_file_and_a_lost_race_is_told(folder):
    async with running(folder, models(folder)) as daemon:
        connector = aiohttp.UnixConnector(str(daemon.socket))
        async with aiohttp.ClientSession("http://axiond", connector=connector) as admin:
            async with admin.get("/admin/v1/manifest") as response:
                text, etag = await response.text(), response.headers["ETag"]
            edited = text + '\n[[routes]]\nname = "r"\nmodels = [{ model = "a" }]\n'
            async with admin.put("/admin/v1/manifest?wait=1", data=edited, headers={"If-Match": etag}) as response:
                assert response.status == 200
                assert (await response.json())["is_realised"]
            assert daemon.path.read_text() == edited
            async with admin.put("/admin/v1/manifest", data=text, headers={"If-Match": etag}) as response:
                assert response.status == 412
            async with admin.put("/admin/v1/manifest", data="[models") as response:
                assert response.status == 422
            assert daemon.path.read_text() == edited


async def test_plan_says_what_an_edit_would_do_and_does_nothing(folder):
    async with running(folder, models(folder, a={}, gone={})) as daemon:
        source = str(folder / "model")
        candidate = f'[models.a]\nsource = "{source}"\nkv_cache = "64MiB"\nmax_num_seqs = 4\n[models.b]\nsource = "{source}"\n'
        async with AdminClient(daemon.socket) as admin:
            plan = await admin.plan(candidate.encode(), "application/toml")
            with pytest.raises(DaemonRefused, match="sorce"):
                await admin.plan(b'[models.a]\nsorce = "x"\n', "application/toml")
        verdicts = {change.model: change.verdict for change in plan.models}
        assert verdicts == {"a": "restart", "b": "load", "gone": "unload"}
        fields = {field.path: field.change for change in plan.models if change.model == "a" for field in change.fields}
        assert fields == {"max_num_seqs": "engine", "drain_grace_s": "live"}
        assert (await daemon.status()).generation == 1


async def test_sighup_tries_again_what_failed(folder):
    async with running(folder, models(folder)) as daemon:
        daemon.manifest["models"]["a"]["source"] = str(folder / "later")
        daemon.write()
        assert not (await daemon.reloaded()).is_realised
        generation = (await daemon.status()).generation
        (folder / "model").rename(folder / "later")
        daemon.process.send_signal(signal.SIGHUP)
        status = await daemon.settled(generation + 1)
        assert status.serving_generation == status.generation


async def test_stop_first_keeps_held_requests_where_memory_holds_one(folder, http):
    """What is expected of processes, and 64 MiB of cache, fit once into 1 GiB."""
    async with running(folder, models(folder, a={"engine_args": {"ready-after": 0.5}}), *FAKE, "--budget-gib", "1") as daemon:
        before = engine_pid((await chat(http, daemon.base, "a"))[1])
        daemon.manifest["models"]["a"]["max_num_seqs"] = 7
        daemon.write()
        answers = []
        async with asyncio.timeout(30):
            while not answers or engine_pid(answers[-1][1]) == before:
                answers.append(await chat(http, daemon.base, "a"))
                assert answers[-1][0] == 200
        daemon.manifest["models"]["a"]["engine_args"] = {"exit-at-start": "no"}
        daemon.write()
        async with asyncio.timeout(30):
            while (await daemon.status()).generation < 3 or not (await daemon.status()).is_settled:
                assert (await chat(http, daemon.base, "a"))[0] == 200
        assert {c.type: c.status for c in (await daemon.status()).conditions}["RolledBack"] == "True"


async def test_second_daemon_on_the_same_folder_is_told_who_is_there(folder):
    async with running(folder, models(folder)) as daemon:
        other = Running(folder, daemon.manifest)
        other.log_path = folder / "log2"
        await other.start(*FAKE)
        async with asyncio.timeout(20):
            assert await other.process.wait() == 1
        assert f"process {daemon.process.pid}" in other.log


async def test_port_in_use_ends_with_a_sentence_and_no_engine(folder):
    async with running(folder, models(folder)) as daemon:
        second = folder / "2"
        second.mkdir()
        other = Running(second, {**daemon.manifest, "server": {"listen": daemon.base.removeprefix("http://")}})
        other.write()
        await other.start(*FAKE)
        async with asyncio.timeout(30):
            assert await other.process.wait() == 1
        assert "Traceback" not in other.log
        assert not list((second / "r").glob("e/*"))


async def test_ten_models_stay_under_120_mb_of_daemon(folder, http):
    async with running(
        folder, models(folder, **{f"m{index}": {} for index in range(10)}), *FAKE, "--budget-gib", "100", ready_within_s=90
    ) as daemon:
        for index in range(10):
            assert (await chat(http, daemon.base, f"m{index}"))[0] == 200
        assert (await daemon.status()).daemon_memory_bytes < 120e6


async def test_models_that_do_not_fit_are_told_while_the_others_serve(folder, http):
    """1 GiB holds one engine."""
    async with running(folder, models(folder, a={"priority": 1}, b={}), *FAKE, "--budget-gib", "1") as daemon:
        assert (await chat(http, daemon.base, "a"))[0] == 200
        status, body = await chat(http, daemon.base, "b")
        assert status == 503
        assert "GiB more than the memory budget of 1.0 GiB" in body["error"]["message"]
        conditions = {condition.type: condition for condition in (await daemon.status()).conditions}
        assert conditions["Ready"].message == "b"
        assert "GiB more than the memory budget of 1.0 GiB" in conditions["Degraded"].message
