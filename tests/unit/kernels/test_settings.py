"""What an engine's processes understand under AXIOND_KERNELS."""

import pytest

from axiond.kernels.settings import OFF, Settings, from_environ

GOOD = {
    "unset": (None, Settings()),
    "empty": ("", Settings()),
    "auto": ("auto", Settings()),
    "off": (" off\n", OFF),
    "off in JSON": ('"off"', OFF),
    "empty table": ("{}", Settings()),
    "one field": ('{"w4a8": "exact"}', Settings(w4a8="exact")),
    "every field": (
        '{"w4a8": "off", "lm_head": "int4", "bf16": "off", "fused": false, "force_isa": "neon_i8mm"}',
        Settings(w4a8="off", lm_head="int4", bf16="off", fused=False, force_isa="neon_i8mm"),
    ),
}


@pytest.mark.parametrize(("text", "settings"), GOOD.values(), ids=GOOD)
def test_what_can_be_said(text: str | None, settings: Settings) -> None:
    assert from_environ({} if text is None else {"AXIOND_KERNELS": text}) == settings


def test_off_is_what_has_nothing_on() -> None:
    assert OFF.is_off
    assert Settings(w4a8="off", lm_head="none", bf16="off", fused=False, force_isa="portable").is_off
    assert not any(settings.is_off for settings in (Settings(), Settings("off", "none", "off"), Settings("off", "none", fused=False)))


BAD = {
    "no JSON": ("on", '^AXIOND_KERNELS must be "auto", "off" or a JSON table: Expecting value'),
    "list": ("[1]", r'^AXIOND_KERNELS must be "auto", "off" or a JSON table, not \[1\]$'),
    "unknown": ('{"w4a16": "auto"}', "^AXIOND_KERNELS: there is no 'w4a16', but w4a8, lm_head, bf16, fused, force_isa$"),
    "value": ('{"lm_head": "int5"}', '^AXIOND_KERNELS: lm_head must be one of "int8", "int4", "none", not "int5"$'),
    "number for truth": ('{"fused": 1}', "^AXIOND_KERNELS: fused must be one of true, false, not 1$"),
    "list for text": ('{"bf16": ["auto"]}', "^AXIOND_KERNELS: bf16 must be one of"),
}


@pytest.mark.parametrize(("text", "words"), BAD.values(), ids=BAD)
def test_what_cannot_be_said_is_an_error(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        from_environ({"AXIOND_KERNELS": text})
