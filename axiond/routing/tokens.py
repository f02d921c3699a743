"""How many tokens a text has, without its tokenizer: an estimate, and bounds between which the truth lies. Pure."""

from typing import NamedTuple

from axiond.routing.prompt import Said


class Tokens(NamedTuple):
    estimate: int
    least: int
    most: int


def estimate(text: str) -> Tokens:
    """Tokens of *text*, whatever its language, for any of the usual tokenizers."""
    size = len(text.encode("utf-8", "replace"))
    return Tokens(round(size / 4), size // 8, size)


def prompt_tokens(said: Said) -> Tokens:
    """Tokens of everything that a body says, and of what a chat template puts around each turn."""
    return estimate("\n".join((*(text for _, text in said.turns), *said.rest)))
