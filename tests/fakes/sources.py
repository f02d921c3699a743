"""A tiny model in every form a source can have."""

import json
import os
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import gguf
import numpy as np
import psutil

from axiond.sources.fetch import Progress, Resolved, fetch

HIDDEN, FEED_FORWARD, HEADS, LAYERS = 32, 64, 4, 2
LETTERS = [chr(code) for code in range(33, 127)]
TOKENS = ["<s>", "</s>", *LETTERS, "ab"]
CONFIG = json.dumps({"architectures": ["LlamaForCausalLM"], "model_type": "llama"}).encode()


def write_gguf(path: Path, *, architecture: str = "llama", seed: int = 0) -> Path:
    """A llama with two layers and random weights, as llama.cpp would write it."""
    random = np.random.default_rng(seed)
    writer = gguf.GGUFWriter(str(path), architecture)
    writer.add_name("tiny")
    writer.add_context_length(64)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(FEED_FORWARD)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_dimension_count(HIDDEN // HEADS)
    writer.add_vocab_size(len(TOKENS))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(TOKENS)
    writer.add_token_types([3, 3, *[1] * (len(TOKENS) - 2)])
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    matrices = {"attn_q": (HIDDEN, HIDDEN), "attn_k": (HIDDEN, HIDDEN), "attn_v": (HIDDEN, HIDDEN), "attn_output": (HIDDEN, HIDDEN),
                "ffn_gate": (FEED_FORWARD, HIDDEN), "ffn_up": (FEED_FORWARD, HIDDEN), "ffn_down": (HIDDEN, FEED_FORWARD)}  # fmt: skip
    tensors = {"token_embd.weight": (len(TOKENS), HIDDEN), "output_norm.weight": (HIDDEN,)}
    for layer in range(LAYERS):
        tensors |= {f"blk.{layer}.{name}.weight": shape for name, shape in matrices.items()}
        tensors |= {f"blk.{layer}.{name}.weight": (HIDDEN,) for name in ("attn_norm", "ffn_norm")}
    for name, shape in tensors.items():
        writer.add_tensor(name, random.standard_normal(shape, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_wheel(folder: Path, version: str, files: Mapping[str, bytes]) -> Path:
    """A wheel of a package called tiny-model, good enough for pip."""
    folder.mkdir(exist_ok=True)
    info = f"tiny_model-{version}.dist-info"
    contents = {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: tiny-model\nVersion: {version}\nRequires-Dist: not-there-at-all\n".encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        **files,
    }
    record = "".join(f"{name},,\n" for name in contents) + f"{info}/RECORD,,\n"
    wheel = folder / f"tiny_model-{version}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, content in {**contents, f"{info}/RECORD": record.encode()}.items():
            archive.writestr(name, content)
    return wheel


class Fetcher:
    """Fetches into one state folder and remembers what it was told."""

    def __init__(self, state_dir: Path) -> None:
        self.state_dir = state_dir
        self.told: list[Progress] = []
        self.on_progress: Callable[[Progress], None] = lambda progress: None

    async def __call__(self, source: str, revision: str | None = None) -> Resolved:
        self.told.clear()
        return await fetch(source, revision, self.state_dir, self._tell)

    def _tell(self, progress: Progress) -> None:
        self.told.append(progress)
        self.on_progress(progress)

    @property
    def stages(self) -> list[str]:
        """What was told of, once each; "starting" is only told when the machine is slow."""
        return list(dict.fromkeys(progress.stage for progress in self.told if progress.stage != "starting"))

    def half_made(self) -> list[Path]:
        return [path for path in (self.state_dir / "models").rglob("*") if path.name.endswith((".partial", ".incomplete"))]


def workers() -> list[psutil.Process]:
    return [child for child in psutil.Process(os.getpid()).children(recursive=True) if "axiond.sources" in " ".join(child.cmdline())]
