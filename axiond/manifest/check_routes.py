"""Routes whose actions contradict each other, or lead nowhere."""

from collections.abc import Iterator, Sequence
from itertools import chain

from axiond.manifest.check_when import check_when
from axiond.manifest.clash import Clash, Known
from axiond.manifest.document import KeyPath
from axiond.manifest.implies import Condition
from axiond.manifest.nearest import quoted
from axiond.manifest.routes import AUTO, Route, Sampling, Weighted

WHOLES = (100, 1)
ROUNDING = 0.0011  # of the whole: 33.3 three times is meant as 100
ANSWERING = ("models", "canary", "shadow", "fallback", "timeout", "max_wait", "sampling", "system_prompt")
MOST_COMPARED = 400  # of routes that ask for more than names, so that thousands are checked in seconds


def check_routes(known: Known) -> Iterator[Clash]:
    """Yield what is wrong with each route, and which come too late."""
    for index, route in known.routes.items():
        at: KeyPath = ("routes", index)
        yield from _check_refusal(at, route)
        yield from _check_models(at, route)
        yield from _check_fallback(at, route)
        yield from _check_weights((*at, "models"), route)
        yield from _check_sampling((*at, "sampling"), route.sampling)
        if known.is_complete:
            yield from _check_ends(at, route, known)
    for index, when in known.whens.items():
        yield from check_when(("routes", index, "when"), when, known)
    yield from _check_order(known)


def _check_refusal(at: KeyPath, route: Route) -> Iterator[Clash]:
    if route.refuse:
        for field in ANSWERING:
            if field in route.model_fields_set and getattr(route, field):
                yield Clash(
                    (*at, field), "is of no use: the route refuses its requests", f"remove it, or {quoted('refuse')}", (*at, "refuse")
                )


def _check_models(at: KeyPath, route: Route) -> Iterator[Clash]:
    names = [share.model for share in route.models]
    yield from _check_twice((*at, "models"), names)
    yield from _check_twice((*at, "fallback"), route.fallback)
    answering = [share.model for share in route.models if share.weight != 0]
    only = answering[0] if len(set(answering)) == 1 and len(route.models) == len(answering) else None
    if only is None:
        return
    first = (*at, "models", 0)
    if route.canary and route.canary.model == only:
        what = f"{quoted(only)} is the route's only model, so nothing is on trial"
        yield Clash((*at, "canary", "model"), what, "name another model, or remove the canary", first)
    if route.shadow and route.shadow.model == only:
        what = f"{quoted(only)} answers already, and would get each request twice"
        yield Clash((*at, "shadow", "model"), what, "name another model, or remove the shadow", first)
    if only in route.fallback and not route.canary:
        what = f"{quoted(only)} is what has failed when the fallback is tried"
        yield Clash((*at, "fallback", route.fallback.index(only)), what, "name another model", first)


def _check_fallback(at: KeyPath, route: Route) -> Iterator[Clash]:
    if route.fallback and not route.fallback_on:
        yield Clash(
            (*at, "fallback_on"), "is empty, so that the fallback is never tried", 'name "error", "overload" or "timeout", or remove it'
        )
    if not route.models or route.fallback or route.canary or route.choose == "score":
        return
    what = "the route has no other model to try" if len(route.models) == 1 else "one of the models is drawn, and no other is tried after it"
    for field in ("fallback_on", "timeout", "max_wait"):
        if field in route.model_fields_set and getattr(route, field):
            yield Clash((*at, field), f"is of no use: {what}", "name some in `fallback`")


def _check_twice(at: KeyPath, names: Sequence[str]) -> Iterator[Clash]:
    for index, name in enumerate(names):
        if (first := names.index(name)) < index:
            yield Clash((*at, index), f"{quoted(name)} stands here twice", "remove one", (*at, first))


def _check_weights(at: KeyPath, route: Route) -> Iterator[Clash]:
    weights = [share.weight for share in route.models]
    given = [weight for weight in weights if weight is not None]
    if not given:
        return
    if route.choose == "score":
        what = "is of no use: the route chooses by score"
        yield Clash(
            (*at, _first(route.models, has_weight=True), "weight"), what, 'remove the weights, or choose = "score"', (*at[:-1], "choose")
        )
    elif len(given) < len(weights):
        what = "has no weight, but another model of the route has one"
        yield Clash((*at, _first(route.models, has_weight=False)), what, "give all of them weights that sum to 100, or none")
    elif sum(given) == 0:
        yield Clash(at, "all weights are 0, so no model would be chosen", "give weights that sum to 100 or to 1")
    elif all(abs(sum(given) / whole - 1) > ROUNDING for whole in WHOLES):
        yield Clash(at, f"the weights sum to {sum(given):.10g}", f"they must sum to 100 or to 1; as they are: {_scaled(given)}")


def _first(shares: Sequence[Weighted], *, has_weight: bool) -> int:
    return next(index for index, share in enumerate(shares) if (share.weight is not None) is has_weight)


def _scaled(weights: Sequence[float]) -> str:
    return ", ".join(f"{weight / sum(weights) * 100:.4g}" for weight in weights)


def _check_sampling(at: KeyPath, sampling: Sampling) -> Iterator[Clash]:
    least, most = sampling.min_tokens, sampling.max_tokens
    if least is not None and most is not None and least > most:
        yield Clash((*at, "min_tokens"), f"is more than max_tokens, {most}", "make it smaller", (*at, "max_tokens"))
    for token in sampling.logit_bias or {}:
        if not token.isdecimal():
            yield Clash((*at, "logit_bias", token), "is no number of a token", "use the numbers of the model's tokenizer")


def _check_ends(at: KeyPath, route: Route, known: Known) -> Iterator[Clash]:
    """A route without models leaves the choice to the request, which must be able to make one."""
    if route.models or route.refuse:
        return
    if route.choose == "score":
        yield Clash((*at, "choose"), "chooses by score, but the route has no models", "name the models to choose among")
    elif route.when is None and route.name in known.names:
        remedy = f'give it another name, and when = {{ model = ["{route.name}"] }}'
        yield Clash(at, "leads nowhere: it names no models, and requests for its name are the model's", remedy)
    elif route.when is None:
        yield Clash(at, f"leads nowhere: {quoted(route.name)} is no model, and the route names none", "give it models, `when` or `refuse`")
    for index, name in enumerate(route.when.model if route.when else ()):
        if "*" not in name and name != AUTO and name not in known.names:
            remedy = "give the route models that answer"
            yield Clash((*at, "when", "model", index), f"{quoted(name)} is no model, and the route names none", remedy)


def _check_order(known: Known) -> Iterator[Clash]:
    """Routes all of whose requests an earlier one takes."""
    groups = known.server.key_groups if known.server else {}
    for_names: dict[str, list[tuple[int, Condition]]] = {}
    for_others: list[tuple[int, Condition]] = []
    for index, route in known.routes.items():
        condition = Condition.of(route, groups)
        names = condition.names
        earlier = chain(for_names.get(names[0], ()) if names else (), for_others[:MOST_COMPARED])
        found = min((first for first, other in earlier if condition.implies(other)), default=None)
        if found is not None and known.routes[found].name != route.name:
            what = f"can never match: the route {quoted(known.routes[found].name)} before it takes all its requests"
            yield Clash(("routes", index), what, "move it up, or narrow the other", ("routes", found))
        for name in names:
            for_names.setdefault(name, []).append((index, condition))
        if not names:
            for_others.append((index, condition))
