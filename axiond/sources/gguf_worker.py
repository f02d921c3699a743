"""Worker: convert a GGUF file to safetensors, which vLLM can open. Done once for each content, whatever the file is called."""

import hashlib
import json
import os
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

from axiond.errors import SourceError
from axiond.sources import cache, child

FORMAT = "bf16-1"  # goes up when a conversion of the same file would come out differently
CHUNK_BYTES = 2**22
MAGIC = b"GGUF"
BYTES_PER_WEIGHT = 2
SHARD_SIZE = "2GB"


def work(path: str, state_dir: str) -> dict[str, Any]:
    file = Path(path)
    check(file)
    root = cache.models_dir(Path(state_dir), "gguf")
    target = root / f"{content_identity(file, root)}-{FORMAT}"
    child.report("waiting")
    with cache.hold(target) as scratch:
        if not target.exists():
            made = scratch / "model"
            convert(file, made)
            cache.put_in_place(made, target)
    return {"path": str(target)}


def check(file: Path) -> None:
    if not file.is_file():
        raise SourceError(str(file), f"there is no file {file}")
    with file.open("rb") as content:
        if content.read(len(MAGIC)) != MAGIC:
            raise SourceError(str(file), f"{file} is not a GGUF file: it does not start with {MAGIC.decode()}")


def content_identity(file: Path, root: Path) -> str:
    """A digest of the content, remembered for as long as the file's size, time and inode stay the same."""
    found = file.stat()
    path = str(file.resolve())
    stamp = [path, found.st_size, found.st_mtime_ns, found.st_ino]
    record = root / f"{hashlib.sha256(path.encode()).hexdigest()[:16]}.identity"
    try:
        known = json.loads(record.read_text())
        if known["stamp"] == stamp:
            return str(known["identity"])
    except (OSError, ValueError, KeyError):
        pass  # not remembered, or half-written: hash it again
    identity = hash_file(file, found.st_size)
    record.write_text(json.dumps({"stamp": stamp, "identity": identity}))
    return identity


def hash_file(file: Path, size_bytes: int) -> str:
    digest, done_bytes = hashlib.sha256(), 0
    with child.progress("hashing", size_bytes, lambda: done_bytes), file.open("rb") as content:
        while chunk := content.read(CHUNK_BYTES):
            digest.update(chunk)
            done_bytes += len(chunk)
    return digest.hexdigest()[:32]


def convert(file: Path, target: Path) -> None:
    os.environ["HF_HUB_OFFLINE"] = "1"  # all that is needed lies in the file
    # Imported here, not above: they take seconds, and are only needed for the first fetch of a file.
    import gguf
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
    from transformers.utils import logging

    try:
        weights = sum(int(tensor.n_elements) for tensor in gguf.GGUFReader(file).tensors)
    except (ValueError, IndexError, OverflowError) as exc:
        raise SourceError(str(file), f"{file} is damaged or cut off: {exc}") from exc
    total_bytes = weights * BYTES_PER_WEIGHT
    cache.check_space(str(file), target.parent, total_bytes)
    done = Fraction()
    logging.set_tqdm_hook(done.follow)
    try:
        with child.progress("converting", total_bytes, lambda: int(done.value * total_bytes)):
            tokenizer = AutoTokenizer.from_pretrained(str(file.parent), gguf_file=file.name)
            model = AutoModelForCausalLM.from_pretrained(
                str(file.parent), gguf_file=file.name, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True))  # fmt: skip
        logging.set_tqdm_hook(None)
        with child.progress("writing", total_bytes, lambda: cache.weight_bytes(target) if target.exists() else 0):
            tokenizer.save_pretrained(target)
            model.save_pretrained(target, max_shard_size=SHARD_SIZE)
    except (ValueError, KeyError, RuntimeError, NotImplementedError) as exc:
        raise SourceError(str(file), f"{file.name} cannot be converted: {exc}") from exc


class Fraction:
    """How far transformers' progress bar over the weights is, from 0 to 1."""

    def __init__(self) -> None:
        self.value = 0.0

    def follow(self, factory: Callable[..., Any], arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
        if options.get("desc") == "Loading weights":
            return self._count(*arguments)
        return factory(*arguments, **options | {"disable": True})

    def _count(self, weights: Collection[Any]) -> Iterator[Any]:
        for index, weight in enumerate(weights, 1):
            yield weight
            self.value = index / len(weights)


if __name__ == "__main__":
    child.run(work)
