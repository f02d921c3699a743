from pathlib import Path

import pytest

from axiond.engine.output import Output, error_lines, how_ended

CAPTURED = Path(__file__).parent / "output"


def captured(name: str) -> Output:
    """Feed what vLLM 0.32 really printed."""
    output = Output()
    for line in (CAPTURED / f"{name}.txt").read_bytes().decode().split("\n"):
        output.add(line)
    return output


@pytest.mark.parametrize(
    ("name", "cause"),
    [
        ("unknown_option", "axiond: error: unrecognized arguments: --no-such=1"),
        ("parser", "axiond: error: argument --tool-call-parser: invalid choice: 'foo' (choose from apertus,"),
        ("max_model_len", "Value error, User-specified max_model_len (100000) is greater than the derived max_model_len"),
        ("no_folder", "huggingface_hub.errors.HFValidationError: Repo id must be in the form 'repo_name' or 'namespace/repo_name'"),
        ("no_weights", "RuntimeError: Cannot find any model weights with `/models/noweights`"),
        ("kv_too_small", "ValueError: To serve at least one request with the model's max seq len (8192), (0.18 GiB KV cache is needed"),
        ("kv_too_big", "ValueError: Available memory on node 0 ("),
    ],
)
def test_the_cause_is_found_and_found_once(name: str, cause: str) -> None:
    """Though it is printed by up to three processes and the tail has long lost it."""
    (error,) = captured(name).errors
    assert error.startswith(cause)


@pytest.mark.parametrize(
    ("lines", "errors"),
    [
        ([], ()),
        (["INFO 11-23 06:50:09 [a.py:1] Error rates: none"], ()),
        (["  ValueError: x", "raise ValueError("], ("ValueError: x",)),
        (["(Worker pid=7) ERROR 11-23 06:50:09 [a.py:1] a.b.OddError: x", "a.b.OddError: x"], ("a.b.OddError: x",)),
        (["RuntimeError: Executor failed."], ("RuntimeError: Executor failed.",)),
        (["RuntimeError: Executor failed.", "KeyError: 'x'"], ("KeyError: 'x'",)),
        ([f"KeyError: {index}" for index in range(9)], ("KeyError: 0", "KeyError: 1", "KeyError: 2")),
        (["MemoryError"], ("MemoryError",)),
        (["Fatal Python error: Segmentation fault"], ("Fatal Python error: Segmentation fault",)),
        (["sh: error: no"], ("sh: error: no",)),
    ],
    ids=["empty", "info", "code", "twice", "only a wrapper", "wrapper and cause", "many", "bare", "fatal", "command"],
)  # fmt: skip
def test_error_lines(lines: list[str], errors: tuple[str, ...]) -> None:
    assert error_lines(lines) == errors


def test_the_tail_is_bounded_and_readable() -> None:
    output = Output()
    for index in range(100):
        output.add(f"\x1b[0;36mloading 0%\rloading {index}%\x1b[0m" + "x" * 600 + "\r\n")
    assert len(output.tail) == 60
    assert output.tail[-1].startswith("loading 99%xxx")
    assert {len(line) for line in output.tail} == {500}


def test_the_last_words_of_the_host() -> None:
    output = Output()
    assert output.ending is None
    for line in ("axiond: engine was stopped", "axiond: engine exited with code 3", "bye"):
        output.add(line)
    assert output.ending == "exited with code 3"


@pytest.mark.parametrize(
    ("code", "words"),
    [(0, "exited with code 0"), (3, "exited with code 3"), (-9, "was killed by SIGKILL"), (-50, "was killed by signal 50")],
)
def test_how_ended(code: int, words: str) -> None:
    assert how_ended(code) == words
