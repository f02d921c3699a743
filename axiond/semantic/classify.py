"""Tells what prompts are about, off the event loop where that takes longer than microseconds."""

import asyncio
import os
import time
from collections import Counter, OrderedDict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from weakref import WeakKeyDictionary

import structlog

from axiond.routing.decision import Verdict
from axiond.semantic.index import SemanticIndex
from axiond.semantic.reading import decide, readable

DEADLINE_S = 0.25
MOST_TOGETHER = 4

Key = tuple[SemanticIndex, bytes]


@dataclass(slots=True)
class _Job:
    index: SemanticIndex
    text: str
    digest: bytes
    until: float = 0.0
    verdict: "asyncio.Future[Verdict | None]" = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class Classifier:
    """
    Answers what a prompt is about: by its keywords, and where they are not sure by its embedding.

    One thread computes embeddings, several at a time where they wait. One that does not come within the deadline is done
    without: the verdict of the keywords stands. Of verdicts by embedding as many are remembered as the manifest says.

    Attributes:
        hits, misses: how often an embedding was remembered, and how often not.
        stages: how many verdicts each stage has given.
        without: verdicts that had to do without an embedding, because it took too long or the model failed.
    """

    def __init__(self, deadline_s: float = DEADLINE_S) -> None:
        self.hits = self.misses = self.without = 0
        self.stages: Counter[str] = Counter()
        self._deadline_s = deadline_s
        self._salt = os.urandom(16)
        self._known: WeakKeyDictionary[SemanticIndex, OrderedDict[bytes, Verdict]] = WeakKeyDictionary()
        self._jobs: dict[Key, _Job] = {}  # in the order they were asked in
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="axiond-embed")
        self._work: asyncio.Task[None] | None = None
        self._log = structlog.get_logger()

    async def classify(self, index: SemanticIndex, text: str) -> Verdict:
        """Tell what a text of any length is about, within the deadline."""
        start = time.perf_counter()
        verdict = index.by_keywords(text)
        if not verdict.domain and index.encoder is not None and (read := readable(text)).strip():
            verdict = await self._by_embedding(index, read) or verdict
        self.stages[verdict.stage] += 1
        return replace(verdict, took_s=time.perf_counter() - start)

    def close(self) -> None:
        """Give up what waits; the thread ends with what it is at."""
        if self._work:
            self._work.cancel()
        for job in [*self._jobs.values()]:
            self._settle(job, None)
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _by_embedding(self, index: SemanticIndex, text: str) -> Verdict | None:
        digest = blake2b(text.encode(), key=self._salt, digest_size=16).digest()
        known = self._known.setdefault(index, OrderedDict())
        if verdict := known.get(digest):
            self.hits += 1
            known.move_to_end(digest)
            return replace(verdict, is_cached=True)
        self.misses += 1
        job = self._jobs.get((index, digest)) or self._ask(index, text, digest)
        job.until = asyncio.get_running_loop().time() + self._deadline_s
        done, _ = await asyncio.wait((job.verdict,), timeout=self._deadline_s)
        verdict = job.verdict.result() if done else None
        self.without += verdict is None
        return verdict

    def _ask(self, index: SemanticIndex, text: str, digest: bytes) -> _Job:
        job = self._jobs[index, digest] = _Job(index, text, digest)
        if self._work is None or self._work.done():
            self._work = asyncio.create_task(self._answer_all(), name="embed prompts")
        return job

    async def _answer_all(self) -> None:
        while jobs := self._next_jobs():
            index = jobs[0].index
            try:
                verdicts = await asyncio.get_running_loop().run_in_executor(self._thread, decide, index, [job.text for job in jobs])
            except Exception as exc:  # whatever it is: routing goes on without
                self._log.warning("domain.embedding_failed", error=repr(exc))
                verdicts = []
            for i, job in enumerate(jobs):
                self._settle(job, verdicts[i] if verdicts else None)

    def _next_jobs(self) -> list[_Job]:
        """Jobs of one index that somebody may still wait for, the oldest first."""
        now = asyncio.get_running_loop().time()
        for job in [job for job in self._jobs.values() if job.until < now]:
            self._settle(job, None)
        jobs = list(self._jobs.values())
        return [job for job in jobs if job.index is jobs[0].index][:MOST_TOGETHER]

    def _settle(self, job: _Job, verdict: Verdict | None) -> None:
        del self._jobs[job.index, job.digest]
        if not job.verdict.done():
            job.verdict.set_result(verdict)
        if verdict:
            known = self._known.setdefault(job.index, OrderedDict())
            known[job.digest] = verdict
            while len(known) > job.index.semantic.cache_entries:
                known.popitem(last=False)
