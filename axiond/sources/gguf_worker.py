"""Worker: convert a GGUF file to safetensors, which vLLM can open. Done once for each content, whatever the file is called."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import psutil

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
    with cache.hold(target, child.report_waiting) as scratch:
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
    try:
        with child.progress("reading"):
            # Imported here, not above: they take seconds, and only the first fetch of a file needs them.
            import gguf
            import torch
            from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
            from transformers.utils import logging

            logging.disable_progress_bar()
            total_bytes = BYTES_PER_WEIGHT * sum(int(tensor.n_elements) for tensor in gguf.GGUFReader(file).tensors)
            cache.check_space(str(file), target.parent, total_bytes)
            tokenizer = AutoTokenizer.from_pretrained(str(file.parent), gguf_file=file.name)
        before_bytes = private_bytes()
        with child.progress("converting", total_bytes, lambda: private_bytes() - before_bytes):  # what is converted stays in memory
            model = AutoModelForCausalLM.from_pretrained(
                str(file.parent), gguf_file=file.name, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True)
            )
        with child.progress("writing", total_bytes, lambda: cache.weight_bytes(target) if target.exists() else 0):
            tokenizer.save_pretrained(target)
            model.save_pretrained(target, max_shard_size=SHARD_SIZE)
    except (SourceError, OSError):
        raise
    except Exception as exc:  # the libraries raise what they like, bare Exception included
        raise SourceError(str(file), f"{file.name} is damaged, or of a kind that transformers cannot convert: {exc}") from exc


def private_bytes() -> int:
    """Memory of this process less what it maps from files."""
    memory = psutil.Process().memory_info()
    return int(memory.rss - memory.shared)


if __name__ == "__main__":
    child.run(work)
