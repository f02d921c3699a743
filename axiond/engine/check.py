"""Ask vLLM's own argument parser about models, in a child process: the daemon does not import vLLM."""

import asyncio
import json
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from axiond.engine.argv import environment, server_argv
from axiond.errors import AxiondError
from axiond.manifest.spec import ModelSpec

DEADLINE_S = 180.0
SERVER = (sys.executable, "-P", "-m", "axiond.engine.server")


class EngineCheckFailed(AxiondError):
    """vLLM's parser could not be asked; the message says why."""


async def check_engine_args(models: Mapping[str, ModelSpec], command: Sequence[str] = SERVER) -> dict[str, str]:
    """
    Check the engine arguments of models as vLLM would at their start; takes some ten seconds, for one or many.

    Returns:
        What vLLM says against a model, by its name; empty if nothing.

    Raises:
        EngineCheckFailed: vLLM is not installed, or did not answer in time.
    """
    if not models:
        return {}
    lines = [json.dumps(server_argv(name, spec, Path("/model"), Path("/socket"))) for name, spec in models.items()]
    with tempfile.TemporaryDirectory(prefix="axiond-check-") as folder:
        environ = environment(next(iter(models.values())), (), Path(folder), Path(folder), os.environ)
        del environ["AXIOND_ENGINE"], environ["AXIOND_KERNELS"]
        answers = await _converse([*command, "--check"], environ, "\n".join(lines))
    problems = [json.loads(line) for line in answers if line == "null" or line.startswith('"')]
    if len(problems) != len(lines):
        raise EngineCheckFailed("vLLM's argument parser did not answer for every model")
    return {name: problem for name, problem in zip(models, problems, strict=True) if problem}


async def _converse(command: Sequence[str], environ: Mapping[str, str], text: str) -> list[str]:
    pipe = asyncio.subprocess.PIPE
    child = await asyncio.create_subprocess_exec(*command, env=environ, stdin=pipe, stdout=pipe, stderr=pipe)
    try:
        async with asyncio.timeout(DEADLINE_S):
            out, err = await child.communicate(text.encode())
    except TimeoutError:
        raise EngineCheckFailed(f"vLLM's argument parser did not answer within {DEADLINE_S:g} s") from None
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()
    if child.returncode:
        last = err.decode(errors="replace").strip().splitlines()[-1:]
        raise EngineCheckFailed(f"vLLM's argument parser ended with code {child.returncode}: {''.join(last)}")
    return out.decode().splitlines()
