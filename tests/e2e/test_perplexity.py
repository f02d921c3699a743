"""What rounding activations to 8 bits costs: the perplexity of a real model with the same 4-bit weights, with and without."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from bench.models import make

HERE = Path(__file__).parent
TEXT = HERE.parent / "data" / "alice.txt"

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]


def perplexity(model: Path, w4a8: str) -> float:
    # The head stays as it is, so that only the linear layers differ.
    environ = os.environ | {"AXIOND_KERNELS": json.dumps({"w4a8": w4a8, "lm_head": "none"}), "HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1"}
    command = [sys.executable, HERE / "perplexity.py", model, TEXT]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    value, tokens = re.findall(r"^perplexity and tokens: ([\d.]+) (\d+)$", done.stdout, re.MULTILINE)[0]
    assert int(tokens) >= 20_000
    return float(value)


def test_rounding_activations_costs_less_than_one_percent() -> None:
    """kernels.md's bound for W4A8 beside W4A16; that they differ at all shows that both kernels were really in use."""
    model = make(HERE.parents[1] / "var" / "bench-models", "smollm2-awq")
    exact, rounded = perplexity(model, "exact"), perplexity(model, "auto")
    print(f"perplexity: exact {exact:.3f}, rounded activations {rounded:.3f}")
    assert exact < 40  # a wrong zero point or nibble order gives thousands
    assert rounded != exact
    assert abs(rounded / exact - 1) < 0.01
