"""Brings what tells the domains of a manifest into memory, before a generation that needs it is served."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from weakref import WeakKeyDictionary, WeakValueDictionary

from axiond.errors import DomainsError, SourceError
from axiond.manifest.routes import Domain, Semantic
from axiond.manifest.spec import Manifest
from axiond.routing import language
from axiond.routing.features import needs_of
from axiond.semantic.check import AT, REMEDY
from axiond.semantic.encoder import Encoder
from axiond.semantic.index import SemanticIndex, build_index
from axiond.semantic.kept import KeptProbes, content_of, files_in

DEADLINE_S = 300.0
BOOT_DEADLINE_S = 10.0  # clients wait meanwhile

Fetch = Callable[[str], Awaitable[Path]]
Load = Callable[[Path], Encoder]
Build = Callable[[Mapping[str, Domain], Semantic, Encoder | None], SemanticIndex]


@dataclass(frozen=True, slots=True)
class Prepared:
    """An index, and why it has no embedding model although the manifest names one."""

    index: SemanticIndex | None = None
    error: DomainsError | None = None

    @property
    def lack(self) -> str:
        """What rules have to do without, in words; empty where they have all they need."""
        return f"keywords alone tell domains until the next reload: {self.error}" if self.error else ""


class Semantics:
    """
    Makes an index for each content of the domains, and loads each embedding model once.

    It keeps neither: they last as long as a generation's rules hold them. One index is made at a time, in a thread; those
    of keywords alone, which take milliseconds, wait for no other.

    Args:
        fetch: brings an embedding model onto this machine. Raises SourceError.
        kept: what was computed before.
    """

    def __init__(self, fetch: Fetch, kept: KeptProbes | None = None, load: Load = Encoder.load, build: Build = build_index) -> None:
        self._fetch, self._kept, self._load, self._build = fetch, kept, load, build
        self._encoders: WeakValueDictionary[str, Encoder] = WeakValueDictionary()
        self._files: WeakKeyDictionary[Encoder, str] = WeakKeyDictionary()
        self._indexes: WeakValueDictionary[str, SemanticIndex] = WeakValueDictionary()
        self._making: dict[str, asyncio.Task[SemanticIndex]] = {}
        self._turn, self._turn_of_keywords = asyncio.Lock(), asyncio.Lock()

    async def prepare(self, manifest: Manifest, within_s: float = DEADLINE_S) -> SemanticIndex | None:
        """
        The index for a manifest's domains; None where it has none. What tells languages is loaded too, if a rule asks for it.

        What is not ready *within_s*, or when this is cancelled, goes on, and the next call waits for the same.

        Raises:
            DomainsError: the embedding model is missing or cannot be used, or it takes longer.
        """
        if needs_of(manifest.routes).language:
            await asyncio.to_thread(language.load)
        if not manifest.domains:
            return None
        content = sha256(manifest.model_dump_json(include={"domains", "semantic"}).encode()).hexdigest()
        if (index := self._indexes.get(content)) is not None:
            return index
        if not (making := self._making.get(content)):
            making = self._making[content] = asyncio.create_task(self._make(content, manifest), name="prepare domains")
            making.add_done_callback(lambda done: self._made(content, done))
        await asyncio.wait((making,), timeout=within_s)
        if not making.done():
            problem = f"{manifest.semantic.embedding_model} is not ready after {within_s:g} s"
            raise DomainsError(AT, problem, "it goes on: reload later", is_unfinished=True)
        return making.result()

    async def prepare_anyhow(self, manifest: Manifest) -> Prepared:
        """As `prepare()`, soon; where that fails, with keywords alone."""
        try:
            return Prepared(await self.prepare(manifest, BOOT_DEADLINE_S))
        except DomainsError as exc:
            error = exc
        try:
            semantic = manifest.semantic.model_copy(update={"embedding_model": None})
            return Prepared(await self.prepare(manifest.model_copy(update={"semantic": semantic})), error)
        except DomainsError as exc:
            return Prepared(None, exc)

    async def close(self) -> None:
        """Leave what is not ready yet; a thread ends what it is at."""
        makings = [*self._making.values()]
        for making in makings:
            making.cancel()
        await asyncio.gather(*makings, return_exceptions=True)

    def _made(self, content: str, making: asyncio.Task[SemanticIndex]) -> None:
        del self._making[content]
        if not making.cancelled():
            making.exception()  # whoever waits is told; nobody may

    async def _make(self, content: str, manifest: Manifest) -> SemanticIndex:
        source = manifest.semantic.embedding_model
        encoder = self._encoders.get(source) if source else None
        folder = await self._folder(source) if source and not encoder else None
        async with self._turn if source else self._turn_of_keywords:
            if source and folder:
                encoder = self._encoders.get(source) or await self._load_from(source, folder)
            try:
                index = await asyncio.to_thread(self._index, manifest, encoder)
            except Exception as exc:  # whatever a text does to a model, it costs this manifest and not the daemon
                raise DomainsError(("domains",), f"their texts cannot be used: {exc!r}", "change them, or the embedding model") from exc
        self._indexes[content] = index
        return index

    def _index(self, manifest: Manifest, encoder: Encoder | None) -> SemanticIndex:
        if encoder is None or self._kept is None:
            return self._build(manifest.domains, manifest.semantic, encoder)
        content = content_of(manifest.model_dump_json(include={"domains"}), self._files[encoder])
        if probe := self._kept.get(content):
            return replace(self._build(manifest.domains, manifest.semantic, None), probe=probe, encoder=encoder)
        index = self._build(manifest.domains, manifest.semantic, encoder)
        if index.probe:
            self._kept.put(content, index.probe)
        return index

    async def _folder(self, source: str) -> Path:
        try:
            return await self._fetch(source)
        except SourceError as exc:
            raise DomainsError(AT, str(exc), REMEDY) from exc

    async def _load_from(self, source: str, folder: Path) -> Encoder:
        try:
            files, encoder = await asyncio.to_thread(lambda: (files_in(folder), self._load(folder)))
        except SourceError as exc:
            raise DomainsError(AT, str(exc), REMEDY) from exc
        except Exception as exc:
            raise DomainsError(AT, f"{source} cannot be loaded: {exc!r}", REMEDY) from exc
        self._encoders[source], self._files[encoder] = encoder, files
        return encoder
