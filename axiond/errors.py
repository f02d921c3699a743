"""The exception tree. A class carries data; `__str__` makes the sentence. Imports nothing of axiond."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


class AxiondError(Exception):
    """Root of every error that axiond raises on purpose."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where in a manifest something stands. Line and column count from 1; 0 means unknown."""

    file: str
    line: int = 0
    column: int = 0
    field: str = ""

    def __str__(self) -> str:
        position = f":{self.line}:{self.column}" if self.line else ""
        return f"{self.file}{position}" + (f": {self.field}" if self.field else "")


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong with a manifest, and what would be right."""

    place: Place
    what: str
    remedy: str = ""

    def __str__(self) -> str:
        return f"{self.place}: {self.what}" + (f" ({self.remedy})" if self.remedy else "")


class ManifestError(AxiondError):
    """A manifest was refused; carries every problem found, not only the first. *files* is what to watch for a better one."""

    def __init__(self, problems: Sequence[Problem], files: Sequence[Path] = ()) -> None:
        self.problems, self.files = tuple(problems), tuple(files)
        super().__init__(self.problems, self.files)

    def __str__(self) -> str:
        return "\n".join(map(str, self.problems))


class DomainsError(AxiondError):
    """The domains of a manifest are not prepared. *at* is the key path of what is to blame; *is_unfinished*: they may yet be."""

    def __init__(self, at: tuple[str | int, ...], problem: str, remedy: str, *, is_unfinished: bool = False) -> None:
        self.at, self.problem, self.remedy, self.is_unfinished = at, problem, remedy, is_unfinished
        super().__init__(at, problem, remedy)

    def __str__(self) -> str:
        return f"{'.'.join(map(str, self.at))}: {self.problem} ({self.remedy})"


class StoreError(AxiondError):
    """The last good manifest could not be kept."""

    def __init__(self, path: str, problem: str) -> None:
        self.path, self.problem = path, problem
        super().__init__(path, problem)

    def __str__(self) -> str:
        return f"last good manifest {self.path} {self.problem}"


class IllegalTransition(AxiondError):
    """An engine was asked to go where `TRANSITIONS` does not lead: a bug in axiond."""

    def __init__(self, key: str, old: str, new: str) -> None:
        self.key, self.old, self.new = key, old, new
        super().__init__(key, old, new)

    def __str__(self) -> str:
        return f"engine {self.key} cannot go from {self.old} to {self.new}"


class SourceError(AxiondError):
    """A model's weights could not be brought onto this machine."""

    def __init__(self, source: str, problem: str) -> None:
        self.source, self.problem = source, problem
        super().__init__(source, problem)

    def __str__(self) -> str:
        return f"source {self.source}: {self.problem}"


class EngineError(AxiondError):
    """An engine failed. *tail* holds its last output lines, oldest first."""

    def __init__(self, key: str, problem: str, tail: Sequence[str] = ()) -> None:
        self.key, self.problem, self.tail = key, problem, tuple(tail)
        super().__init__(key, problem, self.tail)

    def __str__(self) -> str:
        return f"engine {self.key} {self.problem}"


class EngineStartError(EngineError):
    """An engine could not be spawned, or ended before it was ready."""


class ProbeTimeout(EngineError):
    """An engine was not ready within its start timeout."""


class GoldenPromptFailed(EngineError):
    """An engine answers, but not as its golden prompt demands."""


class RequestError(AxiondError):
    """A request that ends with an HTTP error in OpenAI's envelope."""

    def __init__(self, status: int, code: str, message: str, *, param: str | None = None, retry_after_s: int | None = None) -> None:
        self.status, self.code, self.message, self.param, self.retry_after_s = status, code, message, param, retry_after_s
        super().__init__(status, code, message)

    def __str__(self) -> str:
        return self.message


class QueueError(RequestError):
    """
    A request whose turn did not come: *reason* in a word, *position* where it stood or would have, 1 being the next.

    *estimate_s* is how long it would still have waited there; None where that is not known.
    """

    def __init__(
        self, status: int, code: str, message: str, *, reason: str, position: int, estimate_s: float | None, retry_after_s: int
    ) -> None:
        super().__init__(status, code, message, retry_after_s=retry_after_s)
        self.reason, self.position, self.estimate_s = reason, position, estimate_s


class DaemonUnreachable(AxiondError):
    """Nobody answers on the admin socket."""

    def __init__(self, socket: str, problem: str) -> None:
        self.socket, self.problem = socket, problem
        super().__init__(socket, problem)

    def __str__(self) -> str:
        return f"no daemon answers on {self.socket}: {self.problem}"


class DaemonRefused(AxiondError):
    """The daemon answered the admin request with an error; *problems* are those of a manifest, if that was the reason."""

    def __init__(self, status: int, message: str, problems: Sequence[Problem] = ()) -> None:
        self.status, self.message, self.problems = status, message, tuple(problems)
        super().__init__(status, message, self.problems)

    def __str__(self) -> str:
        return "\n".join(map(str, self.problems)) or self.message
