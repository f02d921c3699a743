"""Encoders out of folders as sentence-transformers writes them, against the same forward in float64."""

import json
import subprocess
import sys
from array import array
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from tokenizers import Tokenizer

from axiond.errors import SourceError
from axiond.semantic.encoder import Encoder, _model
from axiond.semantic.folder import read_folder
from tests.fakes.bert import WORDS, Bert, forward, narrowed, write_folder

TEXT = "w1 w2 w3 unheard-of w30"
IDS = [2, *(WORDS.index(word) for word in ("w1", "w2", "w3", "[UNK]", "[UNK]", "[UNK]", "w30")), 3]


@pytest.mark.parametrize(
    ("bert", "how"),
    [
        pytest.param(Bert(), {}, id="bert"),
        pytest.param(Bert(), {"dtype": "F16", "prefix": "bert."}, id="float16-with-a-prefix"),
        pytest.param(Bert(), {"dtype": "BF16"}, id="bfloat16"),
        pytest.param(Bert(pools_mean=False), {}, id="first-token"),
        pytest.param(Bert(first_position=2), {"architecture": "XLMRobertaModel", "prefix": "roberta."}, id="xlm-roberta"),
    ],
)
def test_embeddings(bert: Bert, how: dict[str, str], tmp_path: Path) -> None:
    tensors = bert.tensors()
    encoder = Encoder.load(write_folder(tmp_path / "model", bert, tensors, **how))
    vectors, tokens = encoder.encode([TEXT, "w5"])
    assert (vectors.shape, vectors.dtype, tokens) == ((2, encoder.dimensions), np.float32, (len(IDS), 3))
    for vector, ids in zip(vectors, (IDS, [2, WORDS.index("w5"), 3]), strict=True):
        assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-6)
        assert vector @ forward(bert, narrowed(tensors, how.get("dtype", "F32")), ids) >= 0.9998


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("encoder") / "model", Bert(), Bert().tensors())


@pytest.fixture(scope="module")
def encoder(folder: Path) -> Encoder:
    return Encoder.load(folder)


def test_only_as_many_tokens_as_asked_for_are_read(encoder: Encoder) -> None:
    long = " ".join(["w1 w2 w3"] * 100_000)
    vectors, tokens = encoder.encode([long, "w1 w2 w3 w1 w2 w3", "w1"], 8)
    assert tokens == (8, 8, 3)
    assert np.array_equal(vectors[0], vectors[1])
    assert encoder.encode([long], 10_000)[1] == (encoder.most_tokens,) == (Bert().positions,)


@pytest.fixture
def _threads_change_at_every_instruction() -> Iterator[None]:
    interval_s = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval_s)


@pytest.mark.usefixtures("_threads_change_at_every_instruction")
def test_threads_that_read_different_lengths_do_not_disturb_each_other(encoder: Encoder) -> None:
    text = "w1 w2 w3 " * 10
    with ThreadPoolExecutor(8) as threads:
        counts = list(threads.map(lambda most: encoder.encode([text] * 20, most)[1], [4, 8, 16] * 40))
    assert counts == [(most,) * 20 for most in [4, 8, 16] * 40]


def test_blanks_do_not_hide_the_words_behind_them(encoder: Encoder) -> None:
    assert encoder.encode([" " * 150 + "w1 w2 w3 w1 w2 w3 w7"], 8)[1] == (8,)


def test_a_tokenizer_that_panics_is_an_error_like_others(folder: Path, tmp_path: Path) -> None:
    encoder = Encoder.load(folder)
    panics = tmp_path / "tokenizer.json"
    panics.write_bytes((folder / "tokenizer.json").read_bytes())
    _panic(panics)
    encoder._tokenizer = Tokenizer.from_file(str(panics))
    with pytest.raises(ValueError, match="the tokenizer fails"):
        encoder.encode(["w1"])


def test_neither_texts_nor_a_text(encoder: Encoder) -> None:
    vectors, tokens = encoder.encode([])
    assert (vectors.shape, tokens) == ((0, encoder.dimensions), ())
    assert encoder.encode([""])[1] == (2,)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        pytest.param(lambda f: (f / "modules.json").unlink(), "no modules.json", id="no-modules"),
        pytest.param(lambda f: _edit(f / "config.json", architectures=["LlamaForCausalLM"]), "names LlamaForCausalLM", id="no-bert"),
        pytest.param(lambda f: _edit(f / "config.json", hidden_act="relu"), "activation is relu", id="activation"),
        pytest.param(lambda f: _edit(f / "config.json", position_embedding_type="relative_key"), "positions are", id="positions"),
        pytest.param(lambda f: _edit(f / "config.json", num_attention_heads=8), "multiples of 32", id="heads-of-8"),
        pytest.param(lambda f: _edit(f / "config.json", num_hidden_layers=3), "hold no encoder.layer.2", id="too-few-layers"),
        pytest.param(lambda f: _edit(f / "config.json", vocab_size=30), "word_embeddings.weight of 30 x 64", id="vocabulary"),
        pytest.param(lambda f: (f / "config.json").write_text("{"), "not as sentence-transformers writes it", id="no-json"),
        pytest.param(lambda f: _edit(f / "config.json", hidden_size=None), "not as sentence-transformers writes it", id="no-number"),
        pytest.param(lambda f: (f / "model.safetensors").unlink(), "save_pretrained", id="no-safetensors"),
        pytest.param(lambda f: _cut(f / "model.safetensors"), "cut off", id="cut-off"),
        pytest.param(lambda f: (f / "model.safetensors").write_bytes(b"abc"), "not as sentence-transformers", id="no-header"),
        pytest.param(lambda f: (f / "tokenizer.json").write_text("{}"), "tokenizer.json cannot be read", id="no-tokenizer"),
        pytest.param(lambda f: _panic(f / "tokenizer.json"), "tokenizer.json cannot be read: the tokenizer fails", id="tokenizer-panics"),
        pytest.param(lambda f: _edit(f / "1_Pooling/config.json", pooling_mode_max_tokens=True), "pools tokens by mean, max", id="pooling"),
        pytest.param(lambda f: _edit(f / "config.json", num_hidden_layers=-3), "number that no such model has", id="layers-below-0"),
        pytest.param(lambda f: _edit(f / "config.json", num_hidden_layers=10**12), "number that no such model has", id="layers-no-end"),
        pytest.param(lambda f: _edit(f / "config.json", num_attention_heads=-1), "number that no such model has", id="heads-below-0"),
        pytest.param(lambda f: _edit(f / "config.json", num_attention_heads=0), "not as sentence-transformers writes it", id="no-heads"),
        pytest.param(lambda f: _edit(f / "config.json", hidden_size=float("inf")), "not as sentence-transformers", id="infinite"),
        pytest.param(lambda f: _pad(f / "config.json", -3_000_000), "number that no such model has", id="before-the-positions"),
        pytest.param(lambda f: _pad(f / "config.json", 79), "number that no such model has", id="behind-the-positions"),
        pytest.param(lambda f: _header(f, 2**62), "cut off", id="header-no-end"),
        pytest.param(lambda f: _header(f, 2**64 - 1), "cut off", id="header-beyond-64-bits"),
        pytest.param(lambda f: _widen(f, [40, 2**40]), "does not fit its bytes", id="shape-beyond-the-bytes"),
        pytest.param(lambda f: _widen(f, [-40, -64]), "word_embeddings.weight of 40 x 64", id="shape-below-0"),
        pytest.param(lambda f: _add_module(f, "Dense"), "Transformer, Pooling, Dense", id="modules"),
    ],
)
def test_what_cannot_be_loaded_is_refused(spoil: Callable[[Path], object], said: str, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "model", Bert(), Bert().tensors())
    spoil(folder)
    with pytest.raises(SourceError, match=said) as caught:
        Encoder.load(folder)
    assert caught.value.source == str(folder)


@pytest.mark.parametrize(
    "wrong", [{"layers": -3}, {"layers": 2**40}, {"first_position": -4}, {"first_position": 80}, {"hidden": 48}, {"heads": 0}],
    ids=str,
)  # fmt: skip
def test_native_code_takes_no_shape_that_leads_outside(folder: Path, wrong: dict[str, int]) -> None:
    with pytest.raises(SourceError, match="wanted"):
        _model(folder, replace(read_folder(folder), **wrong))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("ids", "lengths", "floats", "said"),
    [
        pytest.param([40], [1], 64, "ids: wanted below 40, got 40", id="unknown-token"),
        pytest.param([-1], [1], 64, "ids: wanted below 40, got -1", id="negative-token"),
        pytest.param([1, 1], [3], 64, "ids: wanted 3 by the lengths, got 2", id="too-few-tokens"),
        pytest.param([1] * 81, [81], 64, "lengths: wanted 0 to 80, got 81", id="too-long"),
        pytest.param([1], [-1], 64, "lengths: wanted 0 to 80, got -1", id="negative-length"),
        pytest.param([1], [1], 63, "out: wanted 64 floats, got 63", id="too-little-room"),
    ],
)
def test_native_code_reads_and_writes_nothing_outside(encoder: Encoder, ids: list[int], lengths: list[int], floats: int, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        encoder._model.encode(array("i", ids), array("i", lengths), np.empty(floats, np.float32))


@pytest.mark.parametrize(
    ("ids", "out"), [(array("q", [1]), np.empty(64, np.float32)), (array("i", [1]), np.empty((64, 2), np.float32)[:, 0])]
)
def test_arrays_of_other_types_and_with_gaps_are_refused(encoder: Encoder, ids: "array[int]", out: "NDArray[np.float32]") -> None:
    with pytest.raises(ValueError, match="wanted a contiguous array of"):
        encoder._model.encode(ids, array("i", [1]), out)


def test_weights_that_become_shorter_while_they_are_read(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "model", Bert(), Bert().tensors())
    described = read_folder(folder)
    _cut(folder / "model.safetensors")
    with pytest.raises(SourceError, match="changed while it was read"):
        _model(folder, described)


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"no such folder"):
        Encoder.load(tmp_path / "none")


def test_normalize_changes_nothing(folder: Path, encoder: Encoder, tmp_path: Path) -> None:
    other = write_folder(tmp_path / "model", Bert(), Bert().tensors())
    _add_module(other, "Normalize")
    assert np.array_equal(Encoder.load(other).encode([TEXT])[0], encoder.encode([TEXT])[0])


def test_the_settings_of_sentence_transformers_count(encoder: Encoder, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "model", replace(Bert()), Bert().tensors())
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 6, "do_lower_case": True}))
    prompts = {"prompts": {"query": "W9 "}, "default_prompt_name": "query"}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(prompts))
    with_settings = Encoder.load(folder)
    vectors, tokens = with_settings.encode(["W1 W2 w3 w4"])
    assert tokens == (with_settings.most_tokens,) == (6,)
    assert np.array_equal(vectors, encoder.encode(["w9 w1 w2 w3"])[0])


def test_what_a_daemon_without_an_encoder_imports() -> None:
    code = "import sys, axiond.semantic.encoder; print({'numpy', 'tokenizers', 'torch', 'axiond.semantic._encoder'} & {*sys.modules})"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "set()"


def _edit(path: Path, **values: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def _panic(path: Path) -> None:
    """A template that names a token that it does not have."""
    template = {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "[X]", "type_id": 0}}], "pair": [], "special_tokens": {}}
    _edit(path, post_processor=template)


def _pad(path: Path, token: int) -> None:
    _edit(path, architectures=["RobertaModel"], pad_token_id=token)


def _header(folder: Path, header_bytes: int) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(header_bytes.to_bytes(8, "little") + path.read_bytes()[8:])


def _widen(folder: Path, shape: list[int]) -> None:
    """Say that the words have another shape."""
    path = folder / "model.safetensors"
    data = path.read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    header["embeddings.word_embeddings.weight"]["shape"] = shape
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[end:])


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-4])


def _add_module(folder: Path, name: str) -> None:
    modules = json.loads((folder / "modules.json").read_text())
    modules.append({"type": f"sentence_transformers.models.{name}", "path": f"2_{name}"})
    (folder / "modules.json").write_text(json.dumps(modules))
