"""
Generate a few tokens with vLLM, once for every case, and print what came of each. Runs inside the root.

    python3 generate.py CASES

CASES is JSON: [{"name", "model", "dtype", "environ"}]. vLLM is imported once, for under emulation that takes a minute, and every
case is a fork of this process with its own variables. A case that crashes is a result too.
"""

import faulthandler
import json
import multiprocessing
import os
import sys
import time
import traceback
from multiprocessing.connection import Connection
from typing import Any

import vllm

PROMPT = [token * 997 % 49152 for token in range(3, 44)]
NEW_TOKENS = 12
TIMEOUT_S = 1500


def generate(model: str, dtype: str) -> dict[str, Any]:
    # In this process, so that it is seen what raises.
    llm = vllm.LLM(model, dtype=dtype, enforce_eager=True, max_model_len=256, max_num_seqs=2, kv_cache_memory_bytes=2**24)
    asked = vllm.SamplingParams(temperature=0, max_tokens=NEW_TOKENS, ignore_eos=True)
    # A long prompt beside a short one: kernels for many rows and for one.
    prompts = [{"prompt_token_ids": PROMPT}, {"prompt_token_ids": PROMPT[:3]}]
    return {"tokens": [list(answer.outputs[0].token_ids) for answer in llm.generate(prompts, asked, use_tqdm=False)]}


def kernels_in_use() -> Any:
    try:
        from axiond.kernels import active
    except ImportError:
        return None
    return active.report()


def run_case(case: dict[str, Any], result: Connection) -> None:
    faulthandler.enable()
    os.environ.update(case["environ"])
    try:
        answer = generate(case["model"], case["dtype"]) | {"kernels": kernels_in_use()}
    except BaseException as exc:
        traceback.print_exc()
        answer = {"raised": type(exc).__name__, "message": str(exc)}
    result.send(answer)


def outcome(case: dict[str, Any]) -> dict[str, Any]:
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    child = context.Process(target=run_case, args=(case, theirs))
    child.start()
    theirs.close()
    try:
        return dict(ours.recv()) if ours.poll(TIMEOUT_S) else {"raised": "TimeoutError", "message": f"after {TIMEOUT_S} s"}
    except EOFError:
        child.join()
        return {"died": child.exitcode}
    finally:
        child.kill()
        child.join()


def main() -> None:
    for case in json.loads(sys.argv[1]):
        print(f"\n##### {case['name']} {case['model']} {case['dtype']} {case['environ']}", flush=True)
        began = time.monotonic()
        found = outcome(case)
        print("RESULT " + json.dumps({"name": case["name"], "took_s": round(time.monotonic() - began)} | found), flush=True)


if __name__ == "__main__":
    main()
