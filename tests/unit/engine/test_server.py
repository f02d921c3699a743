"""What axiond adds around vLLM's API server."""

import asyncio

import pytest

from axiond.engine.server import warming_up


class Engine:
    """Answers nothing, or refuses."""

    def __init__(self, *, refuses: bool) -> None:
        self.refuses, self.asked = refuses, asyncio.Event()

    async def get_supported_tasks(self) -> tuple[str, ...]:
        self.asked.set()
        if self.refuses:
            raise ValueError("the prompt is too long")
        await asyncio.Event().wait()
        return ()


async def serve(engine: Engine, _: str) -> str:
    await engine.asked.wait()
    return "served"


@pytest.mark.parametrize("refuses", [True, False], ids=["refused", "not answered"])
async def test_a_server_ends_whatever_became_of_its_first_answer(refuses: bool) -> None:
    """An engine that is stopped at once answers nobody, and its server must not wait to be killed."""
    async with asyncio.timeout(5):
        assert await warming_up(serve)(Engine(refuses=refuses), "socket") == "served"
