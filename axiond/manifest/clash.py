"""What is wrong between the parts of a manifest, and the parts as far as they are understood."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from axiond.manifest.document import KeyPath
from axiond.manifest.routes import Domain, Match, Route, Semantic
from axiond.manifest.spec import Server

KEYS = ("api_keys", "key_groups")
Table = TypeVar("Table", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class Clash:
    """*other* is where the name was used first."""

    at: KeyPath
    what: str
    remedy: str = ""
    other: KeyPath | None = None


@dataclass(frozen=True, slots=True)
class Known:
    """
    A manifest without what has no meaning: whatever is not valid by itself is some other check's business.

    *names*: of the models, by what requests may call them. *routes* by their place, and *whens*: the conditions that are
    valid of every route. *domain_names* are also of those that are not valid. Unless *is_complete*, a file is missing, and
    names that do not exist may exist there.
    """

    models: Mapping[str, Any]
    names: Mapping[str, str]
    routes: Mapping[int, Route]
    whens: Mapping[int, Match]
    domains: Mapping[str, Domain]
    domain_names: Collection[str]
    semantic: Semantic | None
    server: Server | None
    is_complete: bool

    @classmethod
    def of(cls, tree: Mapping[str, Any], names: Mapping[str, str], *, is_complete: bool) -> "Known":
        routes = {index: _valid(Route, route) for index, route in enumerate(tree["routes"])}
        domains = {name: _valid(Domain, domain) for name, domain in tree["domains"].items()}
        return cls(
            tree["models"],
            names,
            {index: route for index, route in routes.items() if route},
            {index: found for index, route in enumerate(tree["routes"]) if (found := _valid_when(route))},
            {name: domain for name, domain in domains.items() if domain},
            domains.keys(),
            _valid(Semantic, tree["semantic"]),
            _valid(Server, {name: tree["server"][name] for name in KEYS if name in tree["server"]}),
            is_complete,
        )


def _valid_when(route: Any) -> Match | None:
    """A route's conditions without those that are not valid."""
    written = route.get("when") if isinstance(route, Mapping) else None
    if not isinstance(written, Mapping):
        return None
    try:
        return Match.model_validate(written)
    except ValidationError as exc:
        wrong = {details["loc"][0] for details in exc.errors()}
        return _valid(Match, {name: value for name, value in written.items() if name not in wrong})


def _valid(table: type[Table], written: Any) -> Table | None:
    try:
        return table.model_validate(written)
    except ValidationError:
        return None
