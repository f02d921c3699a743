"""
Print a model's perplexity on a text as vLLM computes it here, and the number of tokens that it predicted.

    python perplexity.py MODEL TEXT
"""

import math
import os
import sys
from pathlib import Path

from vllm import LLM, SamplingParams

WINDOW_TOKENS = 1024


def main() -> None:
    model, text = sys.argv[1], Path(sys.argv[2]).read_text()
    llm = LLM(
        model, dtype="bfloat16", enforce_eager=True, enable_prefix_caching=False, max_model_len=WINDOW_TOKENS + 1, max_num_seqs=1,
        max_num_batched_tokens=WINDOW_TOKENS, kv_cache_memory_bytes=2**27,
    )  # fmt: skip
    tokens = llm.get_tokenizer()(text).input_ids
    windows = [{"prompt_token_ids": tokens[start : start + WINDOW_TOKENS]} for start in range(0, len(tokens), WINDOW_TOKENS)]
    asked = SamplingParams(max_tokens=1, prompt_logprobs=0, temperature=0, detokenize=False)
    logprobs: list[float] = []
    for answer in llm.generate(windows, asked, use_tqdm=False):
        pairs = zip(answer.prompt_token_ids[1:], answer.prompt_logprobs[1:], strict=True)
        logprobs += [found[token].logprob for token, found in pairs]
    value = math.exp(-math.fsum(logprobs) / len(logprobs))
    print(f"perplexity and tokens: {value} {len(logprobs)}", flush=True)  # the test finds it among vLLM's log lines
    llm.llm_engine.engine_core.shutdown()
    os._exit(0)  # the interpreter's own end has aborted in a thread of vLLM's once


if __name__ == "__main__":  # vLLM spawns processes that import this file again
    main()
