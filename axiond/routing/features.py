"""What routing knows of a request: read from its path, headers, key and body, and only as far as a rule asks for it. Pure."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

from axiond.manifest.routes import AUTO, Route
from axiond.routing.decision import Features, Prompt
from axiond.routing.language import language_of
from axiond.routing.prompt import MOST_PARSED_BYTES, Fields, Said, parse, take_flags
from axiond.routing.skim import skim
from axiond.routing.sticky import digest
from axiond.routing.tokens import Tokens, prompt_tokens


@dataclass(frozen=True, slots=True)
class Needs:
    """
    Which features the rules in force read out of a body.

    *flags*: stream, tools, images and response format. *auto*: the text, of requests for the model `auto` alone.
    """

    flags: bool = False
    text: bool = False
    tokens: bool = False
    language: bool = False
    conversation: bool = False
    auto: bool = False

    def any_of(self, requested: str) -> bool:
        """Whether anything is read out of the body of a request for *requested*."""
        return self.flags or self.text or self.tokens or self.language or self.conversation or (self.auto and requested == AUTO)


EVERYTHING = Needs(flags=True, text=True, tokens=True, language=True, conversation=True, auto=True)


def needs_of(routes: Iterable[Route], scores_domains: bool = False) -> Needs:
    """
    What *routes* need.

    Args:
        routes: the rules in force.
        scores_domains: whether a model's score depends on what a prompt is about.
    """
    routes = tuple(routes)
    whens = [route.when for route in routes if route.when]
    return Needs(
        flags=any(when.stream is not None or when.tools is not None or when.images is not None or when.response_format for when in whens),
        text=any(when.keywords or when.regex or when.domain for when in whens)
        or (scores_domains and any(route.choose == "score" for route in routes)),
        tokens=any(when.min_prompt_tokens is not None or when.max_prompt_tokens is not None for when in whens),
        language=any(when.language for when in whens),
        conversation=any(when.percent is not None and when.sticky == "conversation" for when in whens)
        or any(route.canary and route.canary.sticky == "conversation" for route in routes),
        auto=scores_domains,
    )


def features(
    requested: str,
    path: str,
    headers: Mapping[str, str],
    client: str,
    key: str,
    key_group: str,
    body: bytes | None,
    needs: Needs,
    fields_of: Callable[[], Fields | None] = lambda: None,
) -> Features:
    """
    What rules see of one request; a body that cannot be read has no features, and is the engine's to judge.

    Args:
        requested: the model it asks for.
        path: of the URL, without the query.
        headers: case-insensitive.
        client: the API key, or the address.
        key: the API key; "" without.
        key_group: its group; "" without.
        body: JSON; None where there is none.
        needs: what to read out of the body.
        fields_of: tells the fields of a body that is not read whole, so that no flag is overlooked.
    """
    seen = Features(requested, path, headers, digest(client), digest(key), key_group)
    if body is None or not needs.any_of(requested):
        return seen
    said = _read(body, fields_of if needs.flags else lambda: None)
    text = said.text() if needs.text or needs.language or (needs.auto and requested == AUTO) else ""
    return replace(
        seen,
        is_stream=said.is_stream,
        has_tools=said.has_tools,
        has_images=said.has_images,
        response_format=said.response_format,
        language=language_of(text) if needs.language else "",
        prompt=_prompt(said, text, client, needs),
    )


def _read(body: bytes, fields_of: Callable[[], Fields | None]) -> Said:
    if len(body) <= MOST_PARSED_BYTES:
        try:
            return parse(body)
        except ValueError:
            pass
    said = skim(body)
    if (fields := fields_of()) is not None:
        take_flags(said, fields)
    return said


def _prompt(said: Said, text: str, client: str, needs: Needs) -> Prompt:
    tokens = prompt_tokens(said) if needs.tokens else Tokens(0, 0, 0)
    return Prompt(text, tokens.estimate, tokens.least, tokens.most, _conversation(said, client) if needs.conversation else "")


def _conversation(said: Said, client: str) -> str:
    """A name that the client gives counts for this client alone; without one, a conversation is known by its beginning."""
    begins = said.conversation or said.beginning()
    return digest(f"{client}\0{begins}") if begins else ""
