"""Valid manifests: what comes out of them, and from which files."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from axiond.errors import ManifestError
from axiond.manifest.load import Loaded, load, parse
from axiond.manifest.spec import Change, Manifest, change_of


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "models.d").mkdir()
    return tmp_path


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def problem(path: Path, environ: dict[str, str] | None = None) -> str:
    with pytest.raises(ManifestError) as caught:
        load(path, environ or {})
    (only,) = caught.value.problems
    return str(only).replace(f"{path.parent}/", "")


def test_toml_and_json_are_the_same_manifest(folder: Path) -> None:
    toml = write(
        folder / "a.toml", '[models."q2.5"]\nsource = "a/b"\naliases = ["x"]\n[[routes]]\nname = "r"\nmodels = [{model = "q2.5"}]\n'
    )
    models = '{"q2.5": {"source": "a/b", "aliases": ["x"]}}'
    text = '{"$schema": "x", "models": ' + models + ', "routes": [{"name": "r", "models": [{"model": "q2.5"}]}]}'
    assert load(toml, {}).manifest == load(write(folder / "a.json", text), {}).manifest


def test_explicit_emptiness_is_valid(folder: Path) -> None:
    for name, text in (("a.toml", "[models]\n"), ("a.json", "{}")):
        assert load(write(folder / name, text), {}).manifest == Manifest()


def test_defaults_are_merged_into_every_model_all_the_way_down(folder: Path) -> None:
    path = write(
        folder / "a.toml",
        '[defaults]\ndtype = "float32"\naliases = []\n[defaults.chunked_prefill]\nenabled = false\nmax_num_batched_tokens = 64\n'
        '[models.a]\nsource = "x"\n[models.b]\nsource = "x"\ndtype = "auto"\nchunked_prefill = {max_num_batched_tokens = 128}\n',
    )
    models = load(path, {}).manifest.models
    assert [(spec.dtype, spec.chunked_prefill.enabled, spec.chunked_prefill.max_num_batched_tokens) for spec in models.values()] == [
        ("float32", False, 64),
        ("auto", False, 128),
    ]


def test_includes_are_relative_to_the_file_they_stand_in(folder: Path) -> None:
    (folder / "models.d/deep").mkdir()
    root = write(folder / "a.toml", 'include = ["models.d/*.toml", "models.d/nothing-*.toml"]\n[models.root]\nsource = "x"\n')
    write(folder / "models.d/1.toml", 'include = ["deep/x.json"]\n[models.one]\nsource = "./one"\n')
    write(folder / "models.d/2.toml", "# nothing\n")
    write(folder / "models.d/.hidden.toml", "broken")
    write(
        folder / "models.d/deep/x.json", '{"models": {"deep": {"source": "../m.gguf", "chat_template": "./t.jinja", "lora": {"l": "x"}}}}'
    )
    loaded = load(root, {})
    models = loaded.manifest.models
    assert {name: spec.source for name, spec in models.items()} == {
        "root": "x",
        "one": f"{folder}/models.d/one",
        "deep": f"{folder}/models.d/deep/../m.gguf",
    }
    assert (models["deep"].chat_template, models["deep"].lora) == (f"{folder}/models.d/deep/t.jinja", {"l": f"{folder}/models.d/deep/x"})
    assert {str(path.relative_to(folder)) for path in loaded.files} == {
        "a.toml", "models.d/*.toml", "models.d/1.toml", "models.d/deep/x.json", "models.d/2.toml", "models.d/nothing-*.toml",
    }  # fmt: skip


def test_a_file_that_is_included_twice_counts_once(folder: Path) -> None:
    root = write(folder / "a.toml", 'include = ["models.d/*.toml", "models.d/1.toml"]\n')
    write(folder / "models.d/1.toml", '[models.one]\nsource = "x"\n')
    assert list(load(root, {}).manifest.models) == ["one"]


def test_server_and_defaults_may_stand_in_any_file_but_each_field_once(folder: Path) -> None:
    root = write(
        folder / "a.toml", 'include = ["b.toml"]\n[server]\nmax_queue = 1\n[defaults]\ndtype = "float32"\n[models.a]\nsource = "x"\n'
    )
    other = write(folder / "b.toml", "[server]\nqueue_timeout_s = 2\n[defaults]\npriority = 5\n")
    manifest = load(root, {}).manifest
    assert (manifest.server.max_queue, manifest.server.queue_timeout_s, manifest.models["a"].priority) == (1, 2, 5)
    write(other, "[server]\nmax_queue = 1\n")
    assert problem(root) == f"b.toml:2:1: server.max_queue: server.max_queue is set twice, at {folder}/a.toml:3:1 (remove one)".replace(
        f"{folder}/", ""
    )


PATHS = {
    "./m": "{folder}/m",
    "../m": "{folder}/../m",
    ".": "{folder}",
    "m.gguf": "{folder}/m.gguf",
    "/m": "/m",
    "~/m": "~/m",
    "a/b": "a/b",
    "pypi:p#./x.gguf": "pypi:p#./x.gguf",
}


@pytest.mark.parametrize(("source", "meant"), PATHS.items(), ids=PATHS)
def test_a_source_that_is_a_path_is_relative_to_its_file(folder: Path, source: str, meant: str) -> None:
    path = write(folder / "a.toml", f"[models.a]\nsource = '{source}'\n")
    assert load(path, {}).manifest.models["a"].source == meant.format(folder=folder)


def test_server_paths_are_relative_to_their_file(folder: Path) -> None:
    path = write(folder / "a.toml", '[server]\nadmin_socket = "s"\nstate_dir = "./state"\nruntime_dir = "/run/x"\n')
    server = load(path, {}).manifest.server
    assert (server.admin_socket, server.state_dir, server.runtime_dir) == (folder / "s", folder / "state", Path("/run/x"))


def test_paths_do_not_depend_on_where_a_symlinked_manifest_really_is(folder: Path) -> None:
    """A ConfigMap's data lives in a folder that is renamed with every change; digests must not follow."""
    real = write(folder / "models.d/a.toml", '[models.a]\nsource = "./m"\n')
    (folder / "a.toml").symlink_to(real)
    assert load(folder / "a.toml", {}).manifest.models["a"].source == f"{folder}/m"


def test_a_relative_manifest_path_gives_absolute_ones(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(folder / "a.toml", '[models.a]\nsource = "./m"\n')
    monkeypatch.chdir(folder)
    assert load(Path("a.toml"), {}).manifest.models["a"].source == f"{folder}/m"


EXPANSIONS = {
    "variable": ("${A}", "1"),
    "inside": ("x${A}y${B}z", "x1y${A}z"),
    "escape": ("$${A}", "${A}"),
    "escape before a variable": ("$$${A}", "$${A}"),
    "dollar": ("$A $ {A}", "$A $ {A}"),
    "file": ("${file:key}", "secret ${A}"),
}


@pytest.mark.parametrize(("written", "meant"), EXPANSIONS.values(), ids=EXPANSIONS)
def test_values_are_expanded_once(folder: Path, written: str, meant: str) -> None:
    write(folder / "key", "secret ${A}\n")
    path = write(folder / "a.toml", f"[models.a]\nsource = 'x'\nchat_template = '{written}'\n")
    assert load(path, {"A": "1", "B": "${A}"}).manifest.models["a"].chat_template == meant


def test_variables_reach_every_type_of_field_but_no_key(folder: Path) -> None:
    text = '[models.a]\nsource = "x"\nreplicas = "${N}"\nprefix_caching = "${B}"\nkv_cache = "${S}"\nengine_args = {"${N}" = 1}\n'
    spec = load(write(folder / "a.toml", text), {"N": "3", "B": "false", "S": "128MiB"}).manifest.models["a"]
    assert (spec.replicas, spec.prefix_caching, spec.kv_cache, spec.engine_args) == (3, False, 2**27, {"${N}": 1})


REFERENCES = {
    "unset": ("${NOPE}", "the environment variable NOPE is not set (set it where axiond is started)"),
    "open": ("${A", 'has "${" without "}" (write "$${" for a plain "${")'),
    "shell": ("${A:-x}", '"${A:-x}" names no variable (write ${NAME} or ${file:PATH}, and "$${" for a plain "${")'),
    "missing file": ("${file:nokey}", "nokey does not exist"),
    "folder": ("${file:models.d}", "models.d is a folder, not a file"),
    "binary": ("${file:binary}", "binary is not UTF-8"),
    "NUL": ("${file:nul}", "holds a NUL character"),
    "pipe": ("${file:pipe}", "pipe is not a regular file"),
    "endless": ("${file:/dev/zero}", "/dev/zero is not a regular file"),
    "surrogate": ("${S}", "holds half of a surrogate pair"),
}


@pytest.mark.parametrize(("written", "expected"), REFERENCES.values(), ids=REFERENCES)
def test_a_reference_that_leads_nowhere_has_a_place(folder: Path, written: str, expected: str) -> None:
    (folder / "binary").write_bytes(b"\xff")
    (folder / "nul").write_bytes(b"a\0b")
    os.mkfifo(folder / "pipe")
    path = write(folder / "a.toml", f"[models.a]\nsource = '{written}'\n")
    assert problem(path, {"S": "\udc80", "A": "1"}) == f"a.toml:2:1: models.a.source: {expected}"


@pytest.mark.parametrize("written", ["${A}", "${file:key}", "x ${A}"])
@pytest.mark.parametrize("table", ["models.a", "models.engine_args", "defaults"])
def test_engine_arguments_take_no_reference(folder: Path, table: str, written: str) -> None:
    """They end in arguments of a process, which everyone can read: no place for a secret."""
    write(folder / "key", "secret")
    text = f"[{table}]\nsource = '${{A}}'\nengine_args.x = [1, {{y = '{written}'}}]\n"
    found = f"a.toml:3:22: {table}.engine_args.x[1].y: may hold no reference: every user can read an engine's arguments"
    assert problem(write(folder / "a.toml", text), {"A": "1"}).startswith(found)


def test_engine_arguments_may_look_like_a_reference(folder: Path) -> None:
    path = write(folder / "a.toml", "[models.a]\nsource = 'x'\nengine_args.x = '$${A}'\n")
    assert load(path, {"A": "1"}).manifest.models["a"].engine_args == {"x": "${A}"}


INCLUDES = {
    "missing": ("gone.toml", "a.toml:1:12: include[0]: gone.toml does not exist"),
    "folder": ("models.d", "a.toml:1:12: include[0]: models.d is a folder, not a file"),
    "itself": ("a.toml", "a.toml:1:12: include[0]: includes itself: a.toml -> a.toml (take it out of the circle)"),
    "circle": ("b.toml", "b.toml:1:12: include[0]: includes itself: a.toml -> b.toml -> a.toml (take it out of the circle)"),
    "symlink loop": ("loop.toml", "a.toml:1:12: include[0]: loop.toml cannot be read: Too many levels of symbolic links"),
    "empty": ("empty.toml", "empty.toml:1:1: the file is empty (a manifest that serves no model says so with an empty [models] table)"),
}


@pytest.mark.parametrize(("included", "expected"), INCLUDES.values(), ids=INCLUDES)
def test_an_include_that_cannot_be_read_has_a_place(folder: Path, included: str, expected: str) -> None:
    write(folder / "b.toml", 'include = ["a.toml"]\n')
    write(folder / "empty.toml", "\n")
    (folder / "loop.toml").symlink_to("loop.toml")
    path = write(folder / "a.toml", f'include = ["{included}"]\n')
    assert problem(path).partition(" (axiond runs as")[0] == expected


def test_no_route_is_blamed_for_a_model_in_a_file_that_could_not_be_read(folder: Path) -> None:
    root = write(folder / "a.toml", 'include = ["b.toml"]\n[models.a]\nsource = "x"\n[[routes]]\nname = "r"\nmodels = [{model = "b"}]\n')
    write(folder / "b.toml", "[models.b\n")
    assert problem(root).startswith("b.toml:1:10: not valid TOML")


def test_files_that_are_no_manifest(folder: Path) -> None:
    assert problem(folder / "gone.toml") == "gone.toml: the file does not exist"
    assert problem(folder / "models.d") == "models.d: the file is a folder, not a file"
    os.mkfifo(folder / "pipe.toml")
    assert problem(folder / "pipe.toml") == "pipe.toml: the file is not a regular file"
    assert problem(folder / "a\0b") == "a\0b: the file is not a path: embedded null byte"
    assert problem(write(folder / "a.toml", "") / "x").startswith("x: the file cannot be read: Not a directory")


@contextmanager
def nobody() -> Iterator[None]:
    """The rights of no one in particular: root may read everything."""
    is_root = os.geteuid() == 0
    if is_root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if is_root:
            os.seteuid(0)


def test_a_forbidden_file_is_named_with_the_user_who_may_not_read_it(folder: Path) -> None:
    for part in (folder, *folder.parents[:-2]):
        part.chmod(part.stat().st_mode | 0o055)
    path = write(folder / "a.toml", "[models]\n")
    path.chmod(0)
    with nobody():
        expected = f"a.toml: the file cannot be read: Permission denied (axiond runs as user id {os.geteuid()})"
        assert problem(path) == expected


UNUSUAL_PATTERNS = {"long": "x" * 300 + "*.toml", "NUL": "a\\u0000/*.toml", "surrogate": "a\\ud800/*.toml", "long path": "x/" * 3000 + "*"}


@pytest.mark.parametrize("pattern", UNUSUAL_PATTERNS.values(), ids=UNUSUAL_PATTERNS)
def test_a_pattern_that_the_system_refuses_is_refused_or_matches_nothing(folder: Path, pattern: str) -> None:
    path = write(folder / "a.json", '{"include": ["' + pattern + '"]}')
    if pattern.startswith("x"):
        assert load(path, {}).manifest == Manifest()
    else:
        assert problem(path).startswith("a.json:1:14: include[0]: holds ")


def test_a_match_that_may_not_be_looked_at_is_told(folder: Path) -> None:
    """Left out in silence, it would take its models away."""
    for part in (folder, *folder.parents[:-2]):
        part.chmod(part.stat().st_mode | 0o055)
    root = write(folder / "a.toml", 'include = ["models.d/*.toml"]\n')
    root.chmod(0o644)
    write(folder / "models.d/b.toml", "[models.b]\nsource = 'x'\n")
    (folder / "models.d").chmod(0o744)
    with nobody():
        assert problem(root).startswith("a.toml:1:12: include[0]: models.d/b.toml cannot be read: Permission denied")


def test_the_etag_covers_every_file_and_every_variable_used(folder: Path) -> None:
    root = write(folder / "a.toml", 'include = ["b.toml"]\n[models.a]\nsource = "${file:c}${E}"\n')
    write(folder / "b.toml", "[models]\n")
    write(folder / "c", "x")

    def etag(environ: str = "") -> str:
        return load(root, {"E": environ, "UNUSED": str(len(seen))}).etag

    seen: list[str] = []

    seen.append(etag())
    assert [etag()] == seen
    seen.append(etag("other"))
    for path, text in ((folder / "c", "y"), (folder / "b.toml", "[models]\n\n"), (root, root.read_text() + "#")):
        write(path, text)
        seen.append(etag())
    assert len(set(seen)) == 5
    assert all(len(value) == 64 for value in seen)


def test_a_candidate_is_read_as_if_it_stood_in_the_file(folder: Path) -> None:
    text = 'include = ["b.toml"]\n[models.a]\nsource = "./x"\n'
    write(folder / "b.toml", '[models.b]\nsource = "./y"\n')
    candidate = parse(text.encode(), folder / "a.toml", {})
    assert not (folder / "a.toml").exists()
    assert candidate == load(write(folder / "a.toml", text), {})


def test_an_error_names_the_files_to_watch_for_a_better_one(folder: Path) -> None:
    root = write(folder / "a.toml", 'include = ["gone.toml", "models.d/*.toml"]\n')
    with pytest.raises(ManifestError) as caught:
        load(root, {})
    assert set(caught.value.files) == {root, folder / "gone.toml", folder / "models.d/*.toml"}


def test_the_environment_is_the_process_own_by_default(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AXIOND_TEST_SOURCE", "a/b")
    loaded: Loaded = load(write(folder / "a.toml", '[models.a]\nsource = "${AXIOND_TEST_SOURCE}"\n'))
    assert loaded.manifest.models["a"].source == "a/b"


def test_a_class_is_declared_or_the_field_is_a_table() -> None:
    assert change_of(Manifest, "server") is None
    assert change_of(type(Manifest().server), "listen") is Change.DAEMON
