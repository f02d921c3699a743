"""Bytes to a manifest, or to every problem with its place."""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from axiond.errors import ManifestError, Place, Problem
from axiond.manifest.check import check
from axiond.manifest.document import MAX_PROBLEMS, Document, Finding, KeyPath, dotted, is_json
from axiond.manifest.expand import Found
from axiond.manifest.explain import explain
from axiond.manifest.files import Files
from axiond.manifest.gather import gather
from axiond.manifest.merge import Merged, merge, unknown_tables
from axiond.manifest.place import positions
from axiond.manifest.spec import Manifest


@dataclass(frozen=True, slots=True)
class Loaded:
    """*etag* covers everything read, variables included. *files* is what to watch: files read or looked for, and include patterns."""

    manifest: Manifest
    etag: str
    files: tuple[Path, ...]
    _merged: Merged = field(repr=False, compare=False)

    def refusal(self, at: KeyPath, what: str, remedy: str = "") -> ManifestError:
        """What to raise when something that stands at the key path *at* turns out to be wrong later."""
        return ManifestError(_place(list(_find(self._merged, [(at, what, remedy, None)]))), self.files)


def load(path: Path, environ: Mapping[str, str] = os.environ) -> Loaded:
    """
    Read a manifest and all it includes. Blocks: seconds for thousands of models.

    Raises:
        ManifestError: with every problem found; its `files` are what to watch until they are solved.
    """
    return _load(path.absolute(), {}, environ)


def parse(text: bytes, origin: Path, environ: Mapping[str, str] = os.environ) -> Loaded:
    """
    Read a candidate as if *text* stood in the file *origin*, which need not exist.

    Raises:
        ManifestError: as `load()`.
    """
    return _load(origin.absolute(), {origin.absolute(): text}, environ)


def _load(root: Path, given: Mapping[Path, bytes], environ: Mapping[str, str]) -> Loaded:
    files = Files(given)
    gathered = gather(root, files, environ)
    merged = merge(gathered.documents)
    tree = merged.tree()
    manifest, invalid = _validate(tree, merged.written)
    findings = chain(
        gathered.findings,
        merged.findings,
        unknown_tables(gathered.documents),
        _find(merged, ((*found, None) for found in chain(_validate_defaults(merged), invalid))),
        _find(merged, _clashes(tree, is_complete=gathered.is_complete)),
    )
    problems = [*gathered.problems, *_place(list(islice(_distinct(findings), MAX_PROBLEMS + 1)))]
    if manifest is None or problems:
        raise ManifestError(_limit(problems, root), tuple(files.named))
    return Loaded(manifest, files.etag(), tuple(files.named), merged)


Unplaced = tuple[KeyPath, str, str, KeyPath | None]


def _validate(tree: dict[str, Any], written: Callable[[KeyPath], Any]) -> tuple[Manifest | None, Iterator[Found]]:
    try:
        return Manifest.model_validate(tree), iter(())
    except ValidationError as exc:
        return None, explain(exc, tree, written)


def _validate_defaults(merged: Merged) -> Iterator[Found]:
    """A model with nothing but the defaults shows what is wrong with them, even where every model overrides it."""
    tree = {"models": {"defaults": {"source": "x", **merged.tables["defaults"]}}}
    for at, what, remedy in _validate(tree, lambda at: merged.written(("defaults", *at[2:])))[1]:
        if what != "is missing":
            yield ("defaults", *at[2:]), what, remedy


def _clashes(tree: dict[str, Any], *, is_complete: bool) -> Iterator[Unplaced]:
    for clash in check(tree, is_complete=is_complete):
        yield clash.at, clash.what, clash.remedy, clash.other


def _find(merged: Merged, unplaced: Iterable[Unplaced]) -> Iterator[Finding]:
    for at, what, remedy, other in unplaced:
        if origin := merged.origin(at):
            first = merged.origin(other) if other else None
            yield Finding(*origin, what, remedy, other=first if first != origin else None)


def _distinct(findings: Iterable[Finding]) -> Iterator[Finding]:
    """The first thing wrong at each place: later checks stumble over the same value, and a default is in every model."""
    seen: set[tuple[Path, KeyPath]] = set()
    for finding in findings:
        if (place := (finding.document.path, finding.at)) not in seen:
            seen.add(place)
            yield finding


def _place(findings: list[Finding]) -> list[Problem]:
    wanted: dict[Document, list[KeyPath]] = {}
    for document, at in [(finding.document, finding.at) for finding in findings] + [finding.other for finding in findings if finding.other]:
        wanted.setdefault(document, []).append(at)
    spots = {document: positions(document.text, is_json(document.path), paths) for document, paths in wanted.items()}

    def place(document: Document, at: KeyPath, field: str = "") -> Place:
        return Place(str(document.path), *spots[document][at], field)

    problems = []
    for finding in findings:
        also = f", at {place(*finding.other)}" if finding.other else ""
        problems.append(Problem(place(finding.document, finding.at, dotted(finding.at)), finding.what + also, finding.remedy))
    return sorted(problems, key=lambda problem: (problem.place.file, problem.place.line, problem.place.column))


def _limit(problems: list[Problem], root: Path) -> list[Problem]:
    if len(problems) <= MAX_PROBLEMS:
        return problems
    return [*problems[:MAX_PROBLEMS], Problem(Place(str(root)), f"these are {MAX_PROBLEMS:,} problems of more")]
