"""What the daemon tells about the routing of one request: the JSON of `/admin/v1/route:explain`."""

from collections.abc import Mapping
from typing import Any

from pydantic import ConfigDict

from axiond.report import Report


class FeaturesReport(Report):
    """What rules see of a request, but for its text. Of *tokens*, an estimate, the truth lies between *least* and *most*."""

    model: str
    path: str
    key_group: str = ""
    stream: bool = False
    tools: bool = False
    images: bool = False
    response_format: str = "text"
    language: str = ""
    tokens: int = 0
    least_tokens: int = 0
    most_tokens: int = 0


class ConditionTried(Report):
    """*holds* is None where that could not be told."""

    name: str
    wants: str
    met: str
    holds: bool | None


class RuleTried(Report):
    """One rule, with its conditions in the order they were looked at, up to the first that did not hold."""

    route: str
    matched: bool | None
    conditions: tuple[ConditionTried, ...] = ()


class VerdictReport(Report):
    """What the prompt is about: *domain* is empty where no score reaches its threshold. *tokens* were read by the embedding model."""

    domain: str
    score: float
    stage: str
    scores: Mapping[str, float] = {}
    tokens: int = 0


class ScoreReport(Report):
    """How well a model suits: *fit* for the domain, expected wait (None: not known) and *cost*, as weighed by [auto]."""

    model: str
    score: float
    fit: float
    wait_s: float | None = None
    cost: float = 0.0
    can_answer: bool = True


class StepReport(Report):
    step: str
    took_us: float


class RouteExplanation(Report):
    """
    How a request would be decided, in *generation*; 0 stands for the manifest alone, without a daemon.

    *models*: the one that would answer first, then those to fall back on. *rewrites* are the fields of the body that would be
    set, with their values where those are no text. *refusal* is a status and what the client would be told.
    """

    generation: int
    features: FeaturesReport
    tried: tuple[RuleTried, ...] = ()
    verdict: VerdictReport | None = None
    scores: tuple[ScoreReport, ...] = ()
    models: tuple[str, ...] = ()
    route: str = ""
    reason: str = ""
    fallback_on: tuple[str, ...] = ()
    timeout_s: float | None = None
    max_wait_s: float | None = None
    shadow: str = ""
    rewrites: Mapping[str, Any] = {}
    refusal: tuple[int, str] | None = None
    steps: tuple[StepReport, ...] = ()
    lack: str = ""


class RouteQuestion(Report):
    """
    A request to explain the routing of: *body* as a client would send it, or else *model* and *prompt*.

    *client* is who asks, an address or a key; it decides shares of the traffic that stick to clients.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str = "/v1/chat/completions"
    headers: Mapping[str, str] = {}
    client: str = ""
    key: str = ""
    key_group: str = ""
    body: dict[str, Any] | None = None
    model: str = ""
    prompt: str = ""
    stream: bool = False
