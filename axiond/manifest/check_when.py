"""Conditions that no request can meet."""

from collections.abc import Collection, Iterator

from axiond.manifest.clash import Clash, Known
from axiond.manifest.document import KeyPath
from axiond.manifest.implies import FLAGS, covers, keys_of
from axiond.manifest.languages import LANGUAGES
from axiond.manifest.nearest import did_you_mean, quoted
from axiond.manifest.routes import Match
from axiond.routing.paths import ANSWER_PATHS, CHAT_PATHS, IMAGE_PATHS, PATHS, PROMPT_PATHS

NEEDS = {"stream": ANSWER_PATHS, "tools": CHAT_PATHS, "images": IMAGE_PATHS}
KNOWN_LANGUAGES = ("ar", "de", "en", "es", "fr", "hi", "it", "ja", "ko", "pt", "ru", "tr")
OF_PROMPTS = ("language", "min_prompt_tokens", "max_prompt_tokens", "keywords", "regex", "domain")


def check_when(at: KeyPath, when: Match, known: Known) -> Iterator[Clash]:
    yield from _check_paths(at, when)
    yield from _check_keys(at, when, known)
    yield from _check_numbers(at, when)
    for index, language in enumerate(when.language):
        if language not in LANGUAGES:
            remedy = f"some that are: {', '.join(KNOWN_LANGUAGES)}; Norwegian is no, Chinese zh"
            yield Clash((*at, "language", index), "is no language that prompts are told to be in", remedy)
    for index, keyword in enumerate(when.keywords):
        if not keyword.strip():
            yield Clash((*at, "keywords", index), "holds no word", "remove it")
    if known.is_complete:
        yield from _check_domains((*at, "domain"), when, known)


def _check_paths(at: KeyPath, when: Match) -> Iterator[Clash]:
    served = {path for path in PATHS if any(covers(pattern, path) for pattern in when.path)}
    for index, pattern in enumerate(when.path):
        if not any(covers(pattern, path) for path in PATHS):
            yield Clash((*at, "path", index), "no model is asked on such a path", did_you_mean(pattern, sorted(PATHS)) or _some(PATHS))
    if not served:
        return
    for flag in FLAGS:
        if getattr(when, flag) and served.isdisjoint(NEEDS[flag]):
            yield _no_such(at, flag, f"have no {quoted(flag)}", NEEDS[flag])
    if when.response_format and "text" not in when.response_format and served.isdisjoint(ANSWER_PATHS):
        yield _no_such(at, "response_format", "have no response format", ANSWER_PATHS)
    for field in OF_PROMPTS:
        if getattr(when, field) and served.isdisjoint(PROMPT_PATHS):
            yield _no_such(at, field, "have no prompt that is read", PROMPT_PATHS)


def _no_such(at: KeyPath, field: str, what: str, paths: Collection[str]) -> Clash:
    return Clash((*at, field), f"can never hold: requests on the route's paths {what}", _some(paths), (*at, "path"))


def _some(paths: Collection[str]) -> str:
    usual = sorted(paths, key=lambda path: (not path.startswith("/v1/"), len(path), path))
    return f"like {', '.join(usual[:4])}"


def _check_keys(at: KeyPath, when: Match, known: Known) -> Iterator[Clash]:
    if known.server is None:
        return
    groups = known.server.key_groups
    served = {key.get_secret_value() for keys in (known.server.api_keys, *groups.values()) for key in keys}
    for index, key in enumerate(when.api_key):
        if key.get_secret_value() not in served:
            remedy = "add it to server.api_keys, or to a group in server.key_groups"
            yield Clash((*at, "api_key", index), "is none of the server's keys, so no request is let in with it", remedy)
    for index, group in enumerate(when.key_group):
        if group not in groups:
            remedy = did_you_mean(group, groups) or (f"groups: {', '.join(list(groups)[:10])}" if groups else "there are none")
            yield Clash((*at, "key_group", index), f"there is no group {quoted(group)} in server.key_groups", remedy)
        elif not groups[group]:
            yield Clash(
                (*at, "key_group", index), f"the group {quoted(group)} has no keys", "give it some", ("server", "key_groups", group)
            )
    is_known = all(groups.get(group) for group in when.key_group)
    if is_known and when.api_key and when.key_group and not keys_of(when, groups):
        yield Clash((*at, "api_key"), "none of the keys is in a group that the route asks for", "remove one condition", (*at, "key_group"))


def _check_numbers(at: KeyPath, when: Match) -> Iterator[Clash]:
    least, most = when.min_prompt_tokens, when.max_prompt_tokens
    if least is not None and most is not None and least > most:
        what = f"is less than min_prompt_tokens, {least}, so no prompt fits"
        yield Clash((*at, "max_prompt_tokens"), what, "exchange the two", (*at, "min_prompt_tokens"))
    start, _, end = (when.hours or "-").partition("-")
    if start and start == end:
        yield Clash((*at, "hours"), "end when they begin", 'leave them out for the whole day, or write "00:00-24:00"')


def _check_domains(at: KeyPath, when: Match, known: Known) -> Iterator[Clash]:
    for index, domain in enumerate(when.domain):
        if domain not in known.domain_names:
            yield Clash((*at, index), f"there is no domain {quoted(domain)}", unknown_domain(domain, known.domain_names))


def unknown_domain(domain: str, domains: Collection[str]) -> str:
    """What to do about a domain that does not exist."""
    there = f"domains: {', '.join(list(domains)[:10])}" if domains else "none is defined"
    return did_you_mean(domain, domains) or f"{there}; define it with [domains.{domain}]"
