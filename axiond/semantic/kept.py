"""What was computed of domains, on disk, so that a daemon that starts again need not spend seconds on it."""

import io
from contextlib import suppress
from hashlib import sha256
from pathlib import Path

import orjson

from axiond import __version__
from axiond.manifest.files import replace_file
from axiond.routing import words
from axiond.semantic import encoder, folder, index, probe
from axiond.semantic.probe import Probe

MOST_KEPT = 4
CODE = (words, folder, encoder, index, probe)


def files_in(model: Path) -> str:
    """Tell a model's folder from one whose files, or those of its modules, have changed. Raises OSError."""
    paths = sorted((*model.glob("*"), *model.glob("*/*")))  # no deeper: it may not be a model's folder at all
    found = [(str(path.relative_to(model)), path.stat()) for path in paths if path.is_file()]
    return " ".join(f"{name}:{status.st_size}:{status.st_mtime_ns}" for name, status in found)


def content_of(domains: str, model: str) -> str:
    """Name what is computed of *domains* by the *model* whose files are told so; another name when the code changes."""
    code = b"".join(Path(str(module.__file__)).read_bytes() for module in CODE)
    return sha256(b"\0".join((__version__.encode(), domains.encode(), model.encode(), code))).hexdigest()[:32]


class KeptProbes:
    """
    Files in *folder*, each its owner's alone: they hold words of the manifest's examples. Its methods block.

    Nothing hangs on them: what cannot be read is computed again, and what cannot be written is not kept.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def get(self, content: str) -> Probe | None:
        """What was kept under this name, if it is there and whole."""
        import numpy as np

        try:
            with np.load(io.BytesIO(self._path(content).read_bytes()), allow_pickle=False) as kept:
                said = orjson.loads(kept["said"].tobytes())
                words = {word: (number, rarity) for word, number, rarity in said["words"]}
                return Probe(tuple(said["domains"]), kept["vectors"], kept["pull"], words, kept["word_pull"])
        except Exception:  # what zipfile raises for damage is anything from ValueError to NotImplementedError
            return None

    def put(self, content: str, made: Probe) -> None:
        """Keep it, and of the others the latest."""
        import numpy as np

        words = [(word, number, rarity) for word, (number, rarity) in made.words.items()]
        said = np.frombuffer(orjson.dumps({"domains": made.domains, "words": words}), np.uint8)
        file = io.BytesIO()
        np.savez(file, said=said, vectors=made.vectors, pull=made.pull, word_pull=made.word_pull)
        with suppress(OSError):
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            replace_file(self._path(content), file.getvalue())
            for old in sorted(self._folder.glob("*.npz"), key=lambda path: -path.stat().st_mtime_ns)[MOST_KEPT:]:
                old.unlink()

    def _path(self, content: str) -> Path:
        return self._folder / f"{content}.npz"
