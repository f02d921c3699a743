"""What is wrong between the parts of a manifest, and the parts as far as they are understood."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from axiond.manifest.document import KeyPath
from axiond.manifest.routes import Domain, Route, Semantic
from axiond.manifest.spec import Server

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

    *names*: of the models, by what requests may call them. *routes* and *domains* by their place. *server* is None where
    it is not valid. Unless *is_complete*, a file is missing, and names that do not exist may exist there.
    """

    models: Mapping[str, Any]
    names: Mapping[str, str]
    routes: Mapping[int, Route]
    domains: Mapping[str, Domain]
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
            {name: domain for name, domain in domains.items() if domain},
            _valid(Semantic, tree["semantic"]),
            _valid(Server, tree["server"]),
            is_complete,
        )


def _valid(table: type[Table], written: Any) -> Table | None:
    try:
        return table.model_validate(written)
    except ValidationError:
        return None
