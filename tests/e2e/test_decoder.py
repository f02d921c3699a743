"""Decoder layers as one function each beside the same layers as vLLM's modules: in one engine, the same answers to the last bit."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bench.models import TINY, make

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

MODELS = Path(__file__).parents[2] / "var" / "bench-models"

# Runs in a process of its own: vLLM lets nobody go.
CHILD = """
import json, sys
from vllm import LLM, SamplingParams, TokensPrompt
from vllm.sampling_params import StructuredOutputsParams

options = json.loads(sys.argv[2])
llm = LLM(sys.argv[1], enforce_eager=True, kv_cache_memory_bytes=2**27, max_model_len=512, max_num_batched_tokens=128, **options)
runner = llm.llm_engine.engine_core.engine_core.model_executor.driver_worker.worker.model_runner
layers = [layer for layer in runner.model.modules() if "axiond_layer" in layer.__dict__]
prompts = [TokensPrompt(prompt_token_ids=[7 * i % 4000 + 100 for i in range(n, 3 * n)]) for n in (1, 90, 5, 33, 90)]
asked = [
    SamplingParams(temperature=0, max_tokens=20, logprobs=3),
    # With adapters enabled vLLM's own code for CPUs fails at these.
    SamplingParams(temperature=0, max_tokens=5, prompt_logprobs=None if "enable_lora" in options else 2),
    SamplingParams(temperature=0.8, top_p=0.9, top_k=40, seed=1, max_tokens=20, logprobs=0),
    SamplingParams(temperature=0, presence_penalty=1.5, repetition_penalty=1.3, min_tokens=9, max_tokens=20, logit_bias={5: 1.0}),
    SamplingParams(temperature=0, max_tokens=9, structured_outputs=StructuredOutputsParams(choice=["left", "right"])),
]

def answers():
    llm.reset_prefix_cache()
    outputs = llm.generate(prompts, asked, use_tqdm=False) + llm.generate(prompts, asked, use_tqdm=False)
    return [
        [output.num_cached_tokens, one.text, list(one.token_ids), str(one.logprobs), str(output.prompt_logprobs)]
        for output in outputs for one in output.outputs
    ]

functions = [layer.axiond_layer is not None for layer in layers]
ours = answers()
for layer in layers:
    layer.axiond_layer = None
print(json.dumps({"functions": functions, "ours": ours, "modules": answers()}))
"""


def run(folder: Path, **options: Any) -> Any:
    environ = os.environ | {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_PLUGINS": "axiond-kernels", "HF_HUB_OFFLINE": "1"}
    child = subprocess.run(
        [sys.executable, "-c", CHILD, str(folder), json.dumps(options)],
        capture_output=True,
        text=True,
        check=False,
        env=environ,
        timeout=280,
    )
    assert child.returncode == 0, child.stderr[-4000:]
    return json.loads(child.stdout.splitlines()[-1])


def shaped(folder: Path, kind: str, **differences: Any) -> Path:
    """A tiny model of another family, with random weights."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    shape = {key: value for key, value in TINY.items() if key not in ("architectures", "model_type", "dtype")}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(kind, **shape, initializer_range=0.2, **differences), dtype=torch.bfloat16
    )
    for name, parameter in model.named_parameters():
        if "norm" in name:
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(make(MODELS, "tiny")).save_pretrained(folder)
    return folder


def check(found: Any) -> None:
    assert found["functions"] == [True] * TINY["num_hidden_layers"]
    assert found["ours"] == found["modules"]
    texts = [text for _, text, *_ in found["ours"]]
    assert texts[4] in ("left", "right")
    # The second time, a whole block of the long prompt comes from the prefix cache, but not where log-probabilities are asked of it.
    assert [cached for cached, *_ in found["ours"]][5:] == [0, 0, 0, 0, 128]


def test_llama() -> None:
    check(run(make(MODELS, "tiny")))


def test_quantized_llama() -> None:
    check(run(make(MODELS, "tiny-awq")))


def test_qwen2(tmp_path: Path) -> None:
    """With biases in its attention."""
    check(run(shaped(tmp_path, "qwen2")))


def test_qwen3(tmp_path: Path) -> None:
    """With norms over heads."""
    check(run(shaped(tmp_path, "qwen3")))


def test_adapters_get_modules() -> None:
    """Layers that adapters may change at any time stay modules."""
    found = run(make(MODELS, "tiny"), enable_lora=True)
    assert found["functions"] == [False] * TINY["num_hidden_layers"]
    assert found["ours"] == found["modules"]
