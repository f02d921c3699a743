"""What is remembered of responses."""

from typing import Any

from axiond.gateway.connection import Bodies
from axiond.gateway.openai import MOST_REMEMBERED, Passthrough
from axiond.gateway.route import NO_AIDS
from axiond.manifest.spec import Server
from axiond.routing.choose import LONGEST_NAME
from axiond.routing.router import Router


def test_what_is_remembered_of_responses_is_bounded() -> None:
    nobody: Any = None
    passthrough = Passthrough(Router(lambda: None), nobody, NO_AIDS, Server(), Bodies(1))
    for number in range(MOST_REMEMBERED + 1):
        passthrough._remember(f"resp_{number}", "x" * 1000, "m")
    assert "resp_0" not in passthrough._responses
    assert {len(name) for name, _ in passthrough._responses.values()} == {LONGEST_NAME}
