"""Decide which models answer a request: drive the rules, and find out what they ask for."""

import random
from collections.abc import Awaitable, Callable, Generator
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from time import perf_counter

from axiond.gateway.body import Ask
from axiond.gateway.exchange import Exchange
from axiond.routing.choose import candidates
from axiond.routing.decision import Answer, Decision, Features, Question
from axiond.routing.features import Needs, features
from axiond.routing.router import Router
from axiond.routing.rules import Rules, Scene, decide
from axiond.routing.table import RouteTable

Answerer = Callable[[Rules, Question, Features, bytes], Awaitable[Answer]]
NOTHING = Needs()


async def know_nothing(_rules: Rules, _question: Question, _features: Features, _body: bytes) -> Answer:
    """Leave every question open."""
    return None


@dataclass(frozen=True, slots=True)
class Aids:
    """
    What routing has beside the rules.

    *answer* finds out what a decision asks for, given the rules, the features and the body. *note* hears of every
    decision: the features, which of them were read, the circumstances and what was decided.
    """

    answer: Answerer = know_nothing
    note: Callable[[Features, Needs, Scene, Decision], None] = lambda _features, _needs, _scene, _decision: None


NO_AIDS = Aids()


async def route(exchange: Exchange, ask: Ask, router: Router, aids: Aids) -> Decision:
    """
    Decide what becomes of a request; once, whatever it meets later.

    Raises:
        RequestError: 404 unknown name; 503 before any generation is served.
    """
    table = router.table
    rules = table.rules or Rules()
    is_plain = not rules.rules and not table.keep_prompts and (ask.name in table.names or not table.pools)
    body = None if ask.form_type else ask.body
    began_s = perf_counter()
    needs, now = NOTHING if is_plain else rules.needs, scene(table, router)
    seen = see(exchange, ask, body, rules, needs)
    if is_plain:
        decision = _by_name(candidates(table, ask.name, 0.0))
    else:
        decision = await drive(decide(rules, seen, now), rules, seen, body or b"", aids.answer)
        exchange.decided_in_s = perf_counter() - began_s
    aids.note(seen, needs, now, decision)
    return decision


@lru_cache(maxsize=256)
def _by_name(models: tuple[str, ...]) -> Decision:
    return Decision(models, reason="name")


def see(exchange: Exchange, ask: Ask, body: bytes | None, rules: Rules, needs: Needs) -> Features:
    """The features of a request."""
    request, key = exchange.request, exchange.key
    path, group = request.rel_url.raw_path, rules.group_of(key)
    return features(ask.name, path, request.headers, exchange.client, key, group, body, needs, lambda: ask.fields)


def scene(table: RouteTable, router: Router) -> Scene:
    """The circumstances of a decision made now."""
    draw = random.random()  # noqa: S311  # spreads load, guards nothing
    return Scene(table, draw, datetime.now().astimezone(), router.outlook_s)


async def drive(deciding: Generator[Question, Answer, Decision], rules: Rules, seen: Features, body: bytes, answer: Answerer) -> Decision:
    """Let a decision ask what it needs to know."""
    known: Answer = None
    while True:
        try:
            question = deciding.send(known)
        except StopIteration as made:
            decision: Decision = made.value
            return decision
        known = await answer(rules, question, seen, body)
