"""Files of packed weights, and the folder of them: what is kept, mapped, refused, and removed."""

import fcntl
import json
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import Linear, Module, Parameter, Sequential

from axiond.kernels import active, cache, ops
from axiond.kernels.weightfile import HUGE_PAGE, PAGE, Damaged, Reader, Writer, about, remove_remnant

K = 64
SMALL, LARGE = torch.arange(100, dtype=torch.uint8), torch.arange(256, dtype=torch.uint8).repeat(HUGE_PAGE // 256 + 1)


def written(path: Path) -> Path:
    writer = Writer(path)
    writer.add("small", SMALL, {"n": 1})
    writer.add("large", LARGE, None)
    assert not path.exists()
    writer.finish({"from": "a"})
    return path


def test_what_is_written_is_mapped(tmp_path: Path) -> None:
    path = written(tmp_path / "new" / "x.packed")
    reader = Reader(path)
    assert about(path) == reader.about == {"from": "a"}
    assert {name: (entry.offset, entry.about) for name, entry in reader.entries.items()} == {
        "small": (PAGE, {"n": 1}),
        "large": (HUGE_PAGE, None),
    }
    small, large = reader.tensor("small"), reader.tensor("large")
    assert torch.equal(small, SMALL)
    assert torch.equal(large, LARGE)
    small.zero_()
    assert torch.equal(Reader(path).tensor("small"), SMALL)
    assert list(path.parent.iterdir()) == [path]


DAMAGE = {
    "empty": (lambda data: b"", "it is cut off"),
    "cut off": (lambda data: data[:-1], "it is cut off"),
    "of another kind": (lambda data: b"#" + data[1:], "it is of another kind"),
    "another description": (lambda data: data[:-1] + b" ", "its description is damaged"),
    "not on the disk before a crash": (lambda data: data[:PAGE] + bytes(HUGE_PAGE) + data[PAGE + HUGE_PAGE :], "small in it is damaged"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_refused(damage: str, tmp_path: Path) -> None:
    path = written(tmp_path / "x.packed")
    change, words = DAMAGE[damage]
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(Damaged, match=words):
        Reader(path)


def test_one_process_writes_and_a_remnant_is_written_over(tmp_path: Path) -> None:
    path = tmp_path / "x.packed"
    writer = Writer(path)
    with pytest.raises(BlockingIOError):
        Writer(path)
    writer.add("large", LARGE, None)
    remove_remnant(path.with_suffix(".new"))
    assert path.with_suffix(".new").exists()
    os.close(writer._file)  # it died
    written(path)
    assert set(Reader(path).entries) == {"small", "large"}


def test_a_file_that_is_completed_before_it_is_locked_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Others have mapped it by then, and would die of a file that shrinks."""
    path, first = tmp_path / "x.packed", Writer(tmp_path / "x.packed")
    first.add("small", SMALL, None)
    locked = fcntl.flock

    def flock(file: int, how: int) -> None:
        monkeypatch.undo()
        first.finish({})
        locked(file, how)

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(BlockingIOError):
        Writer(path)
    assert torch.equal(Reader(path).tensor("small"), SMALL)


def test_a_remnant_is_removed(tmp_path: Path) -> None:
    os.close(Writer(tmp_path / "x.packed")._file)
    remove_remnant(tmp_path / "x.new")
    assert not list(tmp_path.iterdir())


class Model(Sequential):
    """Two layers, of which the second is looked up in as well."""

    def __init__(self, seed: int) -> None:
        random = torch.Generator().manual_seed(seed)
        super().__init__(Linear(K, 32, bias=False), Linear(K, 16, bias=False))
        for layer in self:
            layer.weight = Parameter(torch.randn(layer.weight.shape, generator=random).bfloat16(), requires_grad=False)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    path = tmp_path / "model" / "model.safetensors"
    path.parent.mkdir()
    path.write_bytes(b"weights")
    return path


@pytest.fixture(autouse=True)
def _facts() -> Iterator[None]:
    yield
    active._facts.clear()


def load(folder: Path, checkpoint: Path, model: Module, *factors: str) -> tuple[list[Tensor], int]:
    """Load a model as a worker does; return its packed layers, and how many had to be packed."""
    count = 0

    def pack(layer: Module) -> ops.PackedRhs:
        nonlocal count
        count += 1
        return ops.pack_bf16(layer.weight.data)

    session = cache.open_session(folder, cache.files_of(checkpoint.parent), factors)
    with cache.session(session):
        if session:
            session.begin(model)
            session.tables({"1.weight": model[1].weight})
        rhs = [cache.packed(model[0], (model[0].weight,), lambda: pack(model[0])), cache.packed(model[1], (), lambda: pack(model[1]))]
    for thread in threading.enumerate():
        if thread.name == "axiond-packed":
            thread.join()
    return [each.data for each in rhs], count


def test_the_second_start_packs_nothing_and_reads_no_weights(tmp_path: Path, checkpoint: Path) -> None:
    """What is loaded into its first layer is thrown away, and its table is there without being loaded."""
    first, again = Model(1), Model(2)
    made, count = load(tmp_path / "packed", checkpoint, first)
    assert count == 2
    assert active._facts["weights"] == "packed at this start and kept, 0 MiB"
    mapped, count = load(tmp_path / "packed", checkpoint, again)
    assert count == 0
    assert active._facts["weights"] == "mapped, 0 MiB"
    assert all(map(torch.equal, made, mapped))
    assert torch.equal(again[1].weight, first[1].weight)
    assert not torch.equal(again[0].weight, first[0].weight)
    assert again[0].weight.weight_loader(again[0].weight, first[0].weight)
    assert not torch.equal(again[0].weight, first[0].weight)


def damaged(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


CHANGES = {
    "the checkpoint is written again": lambda packed, checkpoint: os.utime(checkpoint, ns=(1, 1)),
    "it is another one with the same size and time": lambda packed, checkpoint: shutil.copy2(
        shutil.copy2(checkpoint, checkpoint.with_suffix(".copy")), checkpoint
    ),
    "the file is damaged": lambda packed, checkpoint: damaged(packed),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_does_not_fit_is_packed_anew(change: str, tmp_path: Path, checkpoint: Path) -> None:
    load(tmp_path / "packed", checkpoint, Model(1))
    (packed,) = (tmp_path / "packed").iterdir()
    CHANGES[change](packed, checkpoint)
    assert load(tmp_path / "packed", checkpoint, Model(2))[1] == 2
    assert load(tmp_path / "packed", checkpoint, Model(2))[1] == 0
    assert len(list((tmp_path / "packed").iterdir())) == 1


def test_a_checkpoint_is_known_by_its_index_too_and_links_to_nothing_are_no_part_of_it(checkpoint: Path) -> None:
    """The index says which of the files are read."""
    before = cache.files_of(checkpoint.parent)
    (checkpoint.parent / "model.bin").symlink_to("nowhere")
    assert cache.files_of(checkpoint.parent) == before
    (checkpoint.parent / "model.safetensors.index.json").write_text("{}")
    assert cache.files_of(checkpoint.parent) != before


def test_a_report_is_whole_whoever_writes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights are kept on a thread, and the main one has its own to tell meanwhile."""
    monkeypatch.setenv("AXIOND_ENGINE", str(tmp_path))
    writers = [threading.Thread(target=lambda name=name: [active.tell(**{name: "x" * at}) for at in range(300)]) for name in "ab"]
    active.tell(a="")
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        json.loads((tmp_path / "kernels.json").read_bytes())
    found = json.loads((tmp_path / "kernels.json").read_bytes())
    assert (len(found["a"]), len(found["b"])) == (299, 299)


def test_other_settings_have_a_file_of_their_own(tmp_path: Path, checkpoint: Path) -> None:
    assert [load(tmp_path / "packed", checkpoint, Model(1), factor)[1] for factor in "aabb"] == [2, 0, 2, 0]


def test_a_model_of_other_shapes_is_not_given_these_weights(tmp_path: Path, checkpoint: Path) -> None:
    load(tmp_path / "packed", checkpoint, Model(1))
    other = Model(1)
    other[0].weight = Parameter(torch.zeros(48, K).bfloat16(), requires_grad=False)
    made, count = load(tmp_path / "packed", checkpoint, other)
    assert count == 2
    assert torch.equal(made[0], ops.pack_bf16(other[0].weight.data).data)
    assert active._facts["weights"] == "packed at this start; not kept: its file was of another model"
    assert load(tmp_path / "packed", checkpoint, other)[1] == 2
    assert load(tmp_path / "packed", checkpoint, other)[1] == 0


def test_a_layer_that_is_made_while_weights_are_read_is_packed_at_each_start(tmp_path: Path, checkpoint: Path) -> None:
    load(tmp_path / "packed", checkpoint, Model(1))
    late = Linear(K, 16, bias=False).bfloat16()
    for factors, kind in (((), cache.Reading), (("other",), cache.Writing)):
        session = cache.open_session(tmp_path / "packed", cache.files_of(checkpoint.parent), factors)
        assert type(session) is kind
        session.begin(Model(1))
        packed = session.packed(late, (late.weight,), lambda: ops.pack_bf16(late.weight.data))
        assert torch.equal(packed.data, ops.pack_bf16(late.weight.data).data)


def test_weights_that_nobody_asks_for_are_no_secret(tmp_path: Path, checkpoint: Path) -> None:
    """A layer that was packed and is left to vLLM now has no weights: the engine must not serve, and the next start is well."""
    load(tmp_path / "packed", checkpoint, Model(1))
    session = cache.open_session(tmp_path / "packed", cache.files_of(checkpoint.parent), ())
    assert session
    session.begin(Model(1))
    with pytest.raises(RuntimeError, match="weights that nobody asked for, 0 and others"):
        session.end()
    assert load(tmp_path / "packed", checkpoint, Model(1))[1] == 2


@pytest.mark.parametrize("is_file", [True, False], ids=["it is none", "it is full"])
def test_a_folder_that_takes_nothing_is_a_note(is_file: bool, tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if is_file:
        (tmp_path / "packed").write_text("")
    else:
        monkeypatch.setattr(cache, "DISK_SHARE", 0.0)
    assert load(tmp_path / "packed", checkpoint, Model(1))[1] == 2
    assert active._facts["weights"].startswith("packed at this start; not kept: ")


def test_a_disk_that_fills_up_meanwhile_is_a_note(tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, calls = Model(1), []

    def add(self: Writer, name: str, *_: object) -> Tensor:
        calls.append(name)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Writer, "add", add)
    made, count = load(tmp_path / "packed", checkpoint, model)
    assert (count, calls) == (2, ["1.weight"])
    assert torch.equal(made[0], ops.pack_bf16(model[0].weight.data).data)
    assert active._facts["weights"] == "packed at this start; not kept: [Errno 28] No space left on device"
    assert not list((tmp_path / "packed").iterdir())


def test_room_is_made_by_removing_what_was_used_longest_ago(tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "packed"
    for index, factor in enumerate("abc"):
        load(folder, checkpoint, Model(1), factor)
        newest = max(folder.iterdir(), key=lambda path: path.stat().st_mtime_ns)
        os.utime(newest, (index, index))
    load(folder, checkpoint, Model(1), "a")  # used just now
    sizes = [path.stat().st_blocks * 512 for path in folder.iterdir()]
    monkeypatch.setattr(cache, "DISK_SHARE", (sum(sizes[:2]) + 100) / shutil.disk_usage(folder).total)
    cache.make_room(folder, 1, folder / "d.packed")
    assert [load(folder, checkpoint, Model(1), factor)[1] for factor in "ca"] == [0, 0]
    assert len(list(folder.iterdir())) == 2


def test_what_was_made_of_a_checkpoint_that_is_gone_is_removed(tmp_path: Path, checkpoint: Path) -> None:
    folder = tmp_path / "packed"
    load(folder, checkpoint, Model(1))
    (old,) = folder.iterdir()
    checkpoint.unlink()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "model.bin").write_bytes(b"others")
    load(folder, tmp_path / "other" / "model.bin", Model(1))
    assert not old.exists()
    assert len(list(folder.iterdir())) == 1
