"""
A stand-in for `vllm serve`: a real process that speaks its HTTP and misbehaves on demand.

Every token's text is "<pid>:<index> ", so that a test sees which engine answered and whether anything was lost.
Options of vLLM's that it does not know are ignored. Needs only aiohttp and orjson.
"""

import argparse
import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import orjson
from aiohttp import web

JSON = dict[str, Any]


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--uds")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--model", default="fake")
    parser.add_argument("--served-model-name", nargs="+", default=[])
    parser.add_argument("--lora-modules", nargs="+", default=[], help="name=path")
    parser.add_argument("--ready-after", type=float, default=0.0, help="seconds before it listens")
    parser.add_argument("--exit-after", type=float, help="seconds until it exits by itself")
    parser.add_argument("--exit-code", type=int, default=1, help="of --exit-after and --die-after-tokens")
    parser.add_argument("--exit-at-start", metavar="MESSAGE", help="print a traceback that ends in MESSAGE and exit 1")
    parser.add_argument("--ignore-sigterm", action="store_true")
    parser.add_argument("--stop-at-once", action="store_true", help="on SIGTERM do not finish running requests")
    parser.add_argument("--fail-probe", action="store_true", help="/health answers 503 for ever")
    parser.add_argument("--token-delay", type=float, default=0.0, help="seconds before each token")
    parser.add_argument("--answer", help="the text of every answer instead of numbered tokens")
    parser.add_argument("--fail-requests", type=int, default=0, help="cut the connection of the first N requests")
    parser.add_argument("--die-after-tokens", type=int, help="exit once an answer has this many tokens")
    parser.add_argument("--touch-mib", type=int, default=0, help="use so much memory before it listens")
    parser.add_argument("--grow-mib-per-s", type=float, default=0.0, help="use more and more once it was asked")
    parser.add_argument("--reject", type=int, metavar="STATUS", help="answer every request with this error")
    return parser.parse_known_args(argv)[0]


@dataclass
class Fake:
    options: argparse.Namespace
    started: int = 0
    finished: int = 0
    cancelled: int = 0
    last: JSON = field(default_factory=dict)
    failures_left: int = 0
    memory: list[bytes] = field(default_factory=list)
    growing: asyncio.Task[None] | None = None

    @property
    def names(self) -> list[str]:
        served = self.options.served_model_name or [self.options.model]
        return [*served, *(module.split("=")[0] for module in self.options.lora_modules)]


def error(status: int, message: str, kind: str = "") -> web.Response:
    kinds = {400: "BadRequestError", 404: "NotFoundError", 429: "RateLimitError"}
    body = {"error": {"message": message, "type": kind or kinds.get(status, "InternalServerError"), "param": None, "code": status}}
    return web.json_response(body, status=status)


def dump(value: JSON) -> web.Response:
    return web.Response(body=orjson.dumps(value), content_type="application/json")


def tokens_of(options: argparse.Namespace, body: JSON) -> tuple[list[str], str]:
    """The answer's tokens and its finish reason."""
    limit = body.get("max_completion_tokens") or body.get("max_tokens") or body.get("max_output_tokens") or 16
    if options.answer is None:
        return [f"{os.getpid()}:{index} " for index in range(limit)], "length"
    words = [word + " " for word in options.answer.split(" ")]
    words[-1] = words[-1][:-1]
    return words[:limit], "length" if len(words) > limit else "stop"


def count_prompt(body: JSON) -> int:
    messages = body.get("messages")
    text = " ".join(str(message.get("content")) for message in messages) if messages else str(body.get("prompt") or body.get("input"))
    return len(text.split())


async def paced(fake: Fake, tokens: list[str]) -> AsyncIterator[str]:
    for index, token in enumerate(tokens):
        if fake.options.die_after_tokens is not None and index >= fake.options.die_after_tokens:
            print("Fatal: the engine dies as it was told", file=sys.stderr, flush=True)
            os._exit(fake.options.exit_code)
        await asyncio.sleep(fake.options.token_delay)
        yield token


def touched(size_mib: float) -> bytes:
    return b"\1" * int(size_mib * 2**20)


async def grow(fake: Fake) -> None:
    while True:
        fake.memory.append(touched(fake.options.grow_mib_per_s / 20))
        await asyncio.sleep(0.05)


Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def counted(fake: Fake, answer: Callable[[web.Request, JSON], Awaitable[web.StreamResponse]]) -> Handler:
    """Count one request, and apply the misbehaviour that strikes before an answer begins."""

    async def handle(request: web.Request) -> web.StreamResponse:
        raw = await request.read()
        fake.last = {
            "path": request.path_qs,
            "headers": {str(name): value for name, value in request.headers.items()},
            "body": raw.decode("utf-8", "replace"),
        }
        fake.started += 1
        if fake.started == 1 and fake.options.grow_mib_per_s:
            fake.growing = asyncio.create_task(grow(fake))
        if fake.failures_left > 0:
            fake.failures_left -= 1
            assert request.transport is not None
            request.transport.abort()
            return web.Response()
        if fake.options.reject:
            return error(fake.options.reject, "rejected as told")
        try:
            body = orjson.loads(raw) if request.content_type == "application/json" else {"model": fake.names[0]}
        except orjson.JSONDecodeError:
            return error(400, "malformed JSON")
        if body.get("model", fake.names[0]) not in fake.names:
            return error(404, f"The model `{body['model']}` does not exist.")
        if body.get("max_tokens") is not None and body["max_tokens"] < 1:
            return error(400, "max_tokens must be at least 1")
        try:
            response = await answer(request, body)
        except (asyncio.CancelledError, ConnectionError):
            fake.cancelled += 1
            raise
        fake.finished += 1
        return response

    return handle


async def stream(request: web.Request, events: AsyncIterator[bytes]) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8", "X-Fake-Pid": str(os.getpid())})
    await response.prepare(request)
    async for event in events:
        await response.write(event)
    await response.write_eof()
    return response


def usage(prompt: int, completion: int) -> JSON:
    return {"prompt_tokens": prompt, "total_tokens": prompt + completion, "completion_tokens": completion, "prompt_tokens_details": None}


def choice(is_chat: bool, text: str, finish: str | None = None) -> JSON:
    content = {"message": {"role": "assistant", "content": text, "refusal": None, "tool_calls": []}} if is_chat else {"text": text}
    return {"index": 0, **content, "logprobs": None, "finish_reason": finish, "stop_reason": None}


def delta_choice(is_chat: bool, text: str, finish: str | None = None) -> JSON:
    content = {"delta": {"content": text}} if is_chat else {"text": text}
    return {"index": 0, **content, "logprobs": None, "finish_reason": finish, "stop_reason": None}


def tool_choice(body: JSON) -> JSON:
    function = {"name": body["tools"][0]["function"]["name"], "arguments": f'{{"pid": {os.getpid()}}}'}
    call = {"id": "chatcmpl-tool-1", "type": "function", "function": function}
    message = {"role": "assistant", "content": None, "tool_calls": [call]}
    return {"index": 0, "message": message, "logprobs": None, "finish_reason": "tool_calls", "stop_reason": None}


async def generation_events(fake: Fake, is_chat: bool, body: JSON, head: JSON) -> AsyncIterator[bytes]:
    def event(choices: list[JSON], **more: Any) -> bytes:
        return b"data: " + orjson.dumps({**head, "choices": choices, **more}) + b"\n\n"

    tokens, finish = tokens_of(fake.options, body)
    if is_chat:
        yield event([{**delta_choice(True, ""), "delta": {"role": "assistant", "content": ""}}])
    sent = 0
    async for token in paced(fake, tokens):
        sent += 1
        yield event([delta_choice(is_chat, token, finish if sent == len(tokens) else None)])
    if (body.get("stream_options") or {}).get("include_usage"):
        yield event([], usage=usage(count_prompt(body), sent))
    yield b"data: [DONE]\n\n"


def generation(fake: Fake, is_chat: bool) -> Callable[[web.Request, JSON], Awaitable[web.StreamResponse]]:
    """Handler of /v1/chat/completions or /v1/completions."""
    prefix, name = ("chatcmpl", "chat.completion") if is_chat else ("cmpl", "text_completion")

    async def answer(request: web.Request, body: JSON) -> web.StreamResponse:
        kind = f"{name}.chunk" if is_chat and body.get("stream") else name
        head = {"id": f"{prefix}-{fake.started:08x}", "object": kind, "created": int(time.time()), "model": body.get("model")}
        if body.get("stream"):
            return await stream(request, generation_events(fake, is_chat, body, head))
        if is_chat and body.get("tools"):
            return dump({**head, "choices": [tool_choice(body)], "usage": usage(count_prompt(body), 1)})
        tokens, finish = tokens_of(fake.options, body)
        text = "".join([token async for token in paced(fake, tokens)])
        return dump({**head, "choices": [choice(is_chat, text, finish)], "usage": usage(count_prompt(body), len(tokens))})

    return answer


def responses(fake: Fake) -> Callable[[web.Request, JSON], Awaitable[web.StreamResponse]]:
    async def events(body: JSON, head: JSON) -> AsyncIterator[bytes]:
        number = 0

        def event(kind: str, **more: Any) -> bytes:
            nonlocal number
            number += 1
            payload = {"type": kind, "sequence_number": number - 1, **more}
            return b"event: " + kind.encode() + b"\ndata: " + orjson.dumps(payload) + b"\n\n"

        tokens, _ = tokens_of(fake.options, body)
        yield event("response.created", response={**head, "status": "in_progress", "output": []})
        async for token in paced(fake, tokens):
            yield event("response.output_text.delta", item_id="msg_1", output_index=0, content_index=0, delta=token)
        yield event("response.completed", response=complete(body, head, "".join(tokens), len(tokens)))

    def complete(body: JSON, head: JSON, text: str, count: int) -> JSON:
        content = [{"type": "output_text", "text": text, "annotations": []}]
        output = [{"id": "msg_1", "type": "message", "role": "assistant", "status": "completed", "content": content}]
        prompt = count_prompt(body)
        tokens = {"input_tokens": prompt, "output_tokens": count, "total_tokens": prompt + count}
        return {**head, "status": "completed", "output": output, "usage": tokens}

    async def answer(request: web.Request, body: JSON) -> web.StreamResponse:
        identity = f"resp_{os.getpid()}_{fake.started}"
        head = {"id": identity, "object": "response", "created_at": int(time.time()), "model": body.get("model")}
        if body.get("stream"):
            return await stream(request, events(body, head))
        tokens, _ = tokens_of(fake.options, body)
        return dump(complete(body, head, "".join([token async for token in paced(fake, tokens)]), len(tokens)))

    return answer


def messages(fake: Fake) -> Callable[[web.Request, JSON], Awaitable[web.StreamResponse]]:
    def event(kind: str, **more: Any) -> bytes:
        return b"event: " + kind.encode() + b"\ndata: " + orjson.dumps({"type": kind, **more}) + b"\n\n"

    async def events(body: JSON, head: JSON) -> AsyncIterator[bytes]:
        tokens, _ = tokens_of(fake.options, body)
        yield event("message_start", message={**head, "content": [], "usage": {"input_tokens": count_prompt(body), "output_tokens": 0}})
        yield event("content_block_start", index=0, content_block={"type": "text", "text": ""})
        async for token in paced(fake, tokens):
            yield event("content_block_delta", index=0, delta={"type": "text_delta", "text": token})
        yield event("content_block_stop", index=0)
        yield event("message_delta", delta={"stop_reason": "end_turn"}, usage={"output_tokens": len(tokens)})
        yield event("message_stop")

    async def answer(request: web.Request, body: JSON) -> web.StreamResponse:
        head = {"id": f"msg_{fake.started}", "type": "message", "role": "assistant", "model": body.get("model"), "stop_reason": None}
        if body.get("stream"):
            return await stream(request, events(body, head))
        tokens, _ = tokens_of(fake.options, body)
        text = "".join([token async for token in paced(fake, tokens)])
        counts = {"input_tokens": count_prompt(body), "output_tokens": len(tokens)}
        return dump({**head, "stop_reason": "end_turn", "content": [{"type": "text", "text": text}], "usage": counts})

    return answer


async def embeddings(request: web.Request, body: JSON) -> web.StreamResponse:
    inputs = body["input"] if isinstance(body["input"], list) else [body["input"]]
    data = [{"index": index, "object": "embedding", "embedding": [float(index), 1.0, -1.0]} for index in range(len(inputs))]
    return dump({"id": "embd-1", "object": "list", "created": 1, "model": body.get("model"), "data": data, "usage": usage(len(inputs), 0)})


async def scores(request: web.Request, body: JSON) -> web.StreamResponse:
    documents = body.get("documents") or body.get("text_2") or []
    results = [{"index": index, "relevance_score": 1.0 / (index + 1)} for index in range(len(documents))]
    return dump({"id": "score-1", "model": body.get("model"), "results": results, "data": results, "usage": usage(len(documents), 0)})


async def tokenize(request: web.Request, body: JSON) -> web.StreamResponse:
    words = str(body.get("prompt") or body.get("tokens") or "").split()
    return dump({"count": len(words), "max_model_len": 4096, "tokens": list(range(len(words))), "prompt": " ".join(words)})


async def echo(request: web.Request, body: JSON) -> web.StreamResponse:
    return dump({"path": request.path, "model": body.get("model"), "pid": os.getpid(), "bytes": request.content_length})


def build(options: argparse.Namespace) -> web.Application:
    fake = Fake(options, failures_left=options.fail_requests)
    app = web.Application(client_max_size=2**30)
    generators = {
        "/v1/chat/completions": generation(fake, True), "/v1/completions": generation(fake, False),
        "/v1/responses": responses(fake), "/v1/messages": messages(fake), "/v1/embeddings": embeddings,
        "/tokenize": tokenize, "/detokenize": tokenize,
        **dict.fromkeys(("/rerank", "/v1/rerank", "/v2/rerank", "/score", "/v1/score"), scores),
        **dict.fromkeys(("/pooling", "/classify", "/v1/messages/count_tokens", "/v1/audio/transcriptions"), echo),
        **dict.fromkeys(("/v1/audio/translations", "/v1/responses/{id}/cancel", "/v2/embed"), echo),
    }  # fmt: skip
    for path, answer in generators.items():
        app.router.add_post(path, counted(fake, answer))

    async def health(request: web.Request) -> web.Response:
        return web.Response(status=503 if options.fail_probe else 200)

    async def models(request: web.Request) -> web.Response:
        return dump({"object": "list", "data": [{"id": name, "object": "model", "created": 1, "owned_by": "vllm"} for name in fake.names]})

    async def stats(request: web.Request) -> web.Response:
        counts = {"pid": os.getpid(), "started": fake.started, "finished": fake.finished, "cancelled": fake.cancelled}
        return dump(
            {
                **counts,
                "running": fake.started - fake.finished - fake.cancelled,
                "connections": len(request.protocol._manager.connections),
                "last": fake.last,
            }
        )

    async def stored_response(request: web.Request) -> web.Response:
        return dump({"id": request.match_info["id"], "object": "response", "status": "completed", "pid": os.getpid()})

    app.router.add_get("/health", health)
    app.router.add_get("/v1/models", models)
    app.router.add_get("/fake/stats", stats)
    app.router.add_get("/v1/responses/{id}", stored_response)
    return app


async def serve(options: argparse.Namespace) -> None:
    loop, stopped = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, (lambda: None) if options.ignore_sigterm else stopped.set)
    if options.exit_after is not None:
        loop.call_later(options.exit_after, os._exit, options.exit_code)
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(stopped.wait(), options.ready_after)
        return
    _memory = touched(options.touch_mib)
    grace_s = 0.0 if options.stop_at_once else 3600.0
    runner = web.AppRunner(build(options), handler_cancellation=True, shutdown_timeout=grace_s, access_log=None)
    await runner.setup()
    unix = web.UnixSite(runner, options.uds, backlog=1024) if options.uds else None
    site = unix or web.TCPSite(runner, options.host, options.port, backlog=1024)
    await site.start()
    print(f"fake engine {os.getpid()} serves {site.name}", file=sys.stderr, flush=True)
    await stopped.wait()
    await runner.cleanup()


def main() -> None:
    options = parse(sys.argv[1:])
    if options.exit_at_start is not None:
        trace = f'Traceback (most recent call last):\n  File "fake_engine.py", line 1, in main\nRuntimeError: {options.exit_at_start}'
        print(trace, file=sys.stderr)
        sys.exit(1)
    asyncio.run(serve(options))


if __name__ == "__main__":
    main()
