"""A whole daemon asks a model's own tokenizer where the estimate leaves a rule open."""

import psutil
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from tests.fakes.running import running

ROUTES = [{"name": "long", "when": {"min_prompt_tokens": 40}, "models": ["m"]}]
CHAT_TOKENS = 8


async def reason(http, daemon, words):
    request = {"model": "m", "messages": [{"role": "user", "content": "word " * words}], "max_tokens": 1}
    async with http.post(f"{daemon.base}/v1/chat/completions", json=request) as answer:
        assert answer.status == 200, await answer.text()
        await answer.read()
        return answer.headers["X-Axiond-Reason"]


async def test_prompts_near_a_bound_are_counted(folder, http):
    tokenizer = Tokenizer(WordLevel({"?": 0}, unk_token="?"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.save(str(folder / "model" / "tokenizer.json"))
    model = {"source": str(folder / "model"), "kv_cache": "64MiB"}
    async with running(folder, {"models": {"m": model}, "routes": ROUTES}) as daemon:
        assert await reason(http, daemon, 2) == "name"
        assert (await reason(http, daemon, 400)).startswith("route=long tokens~")
        while "~" in (found := await reason(http, daemon, 40 - CHAT_TOKENS)):
            pass  # a busy machine takes longer to begin counting than a request waits
        assert found == "route=long tokens=40"
        assert await reason(http, daemon, 39 - CHAT_TOKENS) == "name"
        children = psutil.Process(daemon.process.pid).children()
        assert [child for child in children if "axiond.routing.count_worker" in child.cmdline()]
    assert not [child for child in children if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]
