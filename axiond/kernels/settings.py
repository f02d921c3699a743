"""
What the manifest's field `kernels` says, as an engine's processes read it: the variable AXIOND_KERNELS. Standard library only.

It holds "auto", "off", or a JSON table of what shall differ from auto.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args, get_type_hints

VARIABLE = "AXIOND_KERNELS"
FORCE_ISA = "AXIOND_FORCE_ISA"
# The folder in which packed weights are kept; without it none are.
PACKED = "AXIOND_PACKED"
# In the engine's folder, what `axiond.kernels.active` says of it.
REPORT = "kernels.json"

W4a8 = Literal["auto", "exact", "off"]
LmHead = Literal["int8", "int4", "none"]
Bf16 = Literal["auto", "off"]
Isa = Literal["auto", "portable", "neon", "neon_dotprod", "neon_i8mm", "neon_bf16", "avx2", "avx512vnni", "avx512bf16"]


@dataclass(frozen=True, slots=True)
class Settings:
    """Which layers axiond's kernels take. *force_isa* is the instruction set to use, auto the best one."""

    w4a8: W4a8 = "auto"
    lm_head: LmHead = "int8"
    bf16: Bf16 = "auto"
    fused: bool = True
    force_isa: Isa = "auto"

    @property
    def is_off(self) -> bool:
        return (self.w4a8, self.lm_head, self.bf16, self.fused) == ("off", "none", "off", False)


OFF = Settings(w4a8="off", lm_head="none", bf16="off", fused=False)


def from_environ(environ: Mapping[str, str]) -> Settings:
    """
    Read AXIOND_KERNELS; everything is "auto" without it.

    Raises:
        ValueError: it holds something else; the message is a sentence.
    """
    text = environ.get(VARIABLE, "").strip()
    if text in ("", "auto", "off"):
        return OFF if text == "off" else Settings()
    try:
        table = json.loads(text)
    except ValueError as exc:
        raise ValueError(f'{VARIABLE} must be "auto", "off" or a JSON table: {exc}') from exc
    if table in ("auto", "off"):
        return OFF if table == "off" else Settings()
    if not isinstance(table, dict):
        raise ValueError(f'{VARIABLE} must be "auto", "off" or a JSON table, not {text[:60]}')
    return _checked(table)


def _checked(table: dict[str, Any]) -> Settings:
    hints = get_type_hints(Settings)
    for name, value in table.items():
        if name not in hints:
            raise ValueError(f"{VARIABLE}: there is no {name!r}, but {', '.join(field.name for field in fields(Settings))}")
        allowed = get_args(hints[name]) or (True, False)
        if type(value) is not type(allowed[0]) or value not in allowed:
            raise ValueError(f"{VARIABLE}: {name} must be one of {', '.join(map(json.dumps, allowed))}, not {json.dumps(value)}")
    return Settings(**table)
