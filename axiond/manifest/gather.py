"""The root file and all that it includes, read, parsed and expanded."""

import glob
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from axiond.errors import ManifestError, Place, Problem
from axiond.manifest.document import Document, Finding, KeyPath
from axiond.manifest.expand import Expansion, anchor_paths
from axiond.manifest.files import Files, Unreadable
from axiond.manifest.syntax import parse_syntax


@dataclass(slots=True)
class Gathered:
    """*problems* are those of files as such; one that could not be parsed is not among the *documents*."""

    documents: list[Document] = field(default_factory=list)
    paths: set[Path] = field(default_factory=set)
    problems: list[Problem] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)

    @property
    def is_complete(self) -> bool:
        """Whether no file is missing."""
        return not self.problems and all(finding.at[:1] != ("include",) for finding in self.findings)


def gather(root: Path, files: Files, environ: Mapping[str, str]) -> Gathered:
    gathered = Gathered()
    try:
        _add(root, (), gathered, files, environ)
    except Unreadable as exc:
        gathered.problems.append(Problem(Place(str(root)), f"the file {exc.what}", exc.remedy))
    return gathered


def _add(path: Path, including: tuple[Path, ...], gathered: Gathered, files: Files, environ: Mapping[str, str]) -> None:
    """Raises Unreadable for *path* itself; what it includes is placed at its own `include`."""
    text = files.read(path)
    try:
        raw, duplicates = parse_syntax(path, text)
    except ManifestError as exc:
        gathered.problems += exc.problems
        return
    gathered.problems += duplicates
    expansion = Expansion(path.parent, files, environ)
    data: dict[str, Any] = expansion.value(raw)
    anchor_paths(data, path.parent)
    document = Document(path, text, raw, data)
    gathered.documents.append(document)
    gathered.findings += (Finding(document, at, what, remedy) for at, what, remedy in expansion.found)
    _include(document, (*including, path), gathered, files, environ)


def _include(document: Document, including: tuple[Path, ...], gathered: Gathered, files: Files, environ: Mapping[str, str]) -> None:
    def wrong(at: KeyPath, what: str, remedy: str = "") -> None:
        gathered.findings.append(Finding(document, at, what, remedy))

    patterns = document.data.get("include", [])
    if not isinstance(patterns, list):
        wrong(("include",), "must be a list", 'write include = ["models.d/*.toml"]')
        return
    for index, pattern in enumerate(patterns):
        at = ("include", index)
        if not isinstance(pattern, str) or not pattern:
            wrong(at, "must be a file name or pattern in quotes")
            continue
        for path in _matches(document.path.parent / pattern, files):
            if path in including:
                circle = (*including[including.index(path) :], path)
                wrong(at, f"includes itself: {' -> '.join(map(str, circle))}", "take it out of the circle")
            elif path not in gathered.paths:
                gathered.paths.add(path)
                try:
                    _add(path, including, gathered, files, environ)
                except Unreadable as exc:
                    wrong(at, f"{path} {exc.what}", exc.remedy)


def _matches(pattern: Path, files: Files) -> list[Path]:
    return files.matches(pattern) if glob.has_magic(str(pattern)) else [pattern]
