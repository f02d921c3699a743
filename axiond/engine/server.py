"""
The API server of one engine, in a child process: `python -m axiond.engine.server ARGUMENTS`, as for `vllm serve`.

With `--check` it reads argument lists from standard input, one JSON list a line, and prints for each what vLLM's own
parser says against it, as a JSON string, or null.

EngineCore and workers import this module again when they are spawned. So vLLM is imported where it is used: they need less
of it than the server does, and `guard()` comes first.
"""

import asyncio
import json
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Coroutine, Sequence
from contextlib import redirect_stdout
from typing import Any, TypeVar

from axiond.engine.plugin import guard

guard()

Parse = Callable[[Sequence[str]], Namespace]
_T = TypeVar("_T")


class ArgumentsRefused(Exception):
    """vLLM does not take these arguments."""


def vllm_parser() -> Parse:
    """Build vLLM's parser, with its checks, as a function that raises ArgumentsRefused."""
    from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
    from vllm.reasoning import ReasoningParserManager
    from vllm.tool_parsers import ToolParserManager
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    # Abbreviations would slip past the manifest's check that no argument has a field of its own.
    parser: ArgumentParser = make_arg_parser(FlexibleArgumentParser(allow_abbrev=False))

    def refuse(message: str) -> None:
        raise ArgumentsRefused(message)

    def parse(argv: Sequence[str]) -> Namespace:
        try:
            args = parser.parse_args(list(argv))
            validate_parsed_serve_args(args)
        except SystemExit as exc:
            raise ArgumentsRefused("asks the parser for help, not for a server") from exc
        except Exception as exc:
            # Whatever it is: vLLM raises a dozen classes here, and would not start.
            raise ArgumentsRefused(str(exc)) from exc
        if not args.tool_parser_plugin:
            require("--tool-call-parser", args.tool_call_parser, ToolParserManager.list_registered())
        if not args.reasoning_parser_plugin:
            require("--reasoning-parser", args.reasoning_parser, ReasoningParserManager.list_registered())
        return args

    parser.error = refuse  # type: ignore[method-assign, assignment]
    return parse


def require(option: str, value: str | None, known: Sequence[str]) -> None:
    if value and value not in known:
        raise ArgumentsRefused(f"argument {option}: invalid choice: {value!r} (choose from {', '.join(sorted(known))})")


def check(parse: Parse, argv: Sequence[str]) -> str | None:
    try:
        parse(argv)
    except ArgumentsRefused as exc:
        return str(exc)
    return None


def serve(argv: Sequence[str]) -> int:
    import uvloop
    from vllm.entrypoints.launchers.api_server import entry
    from vllm.entrypoints.serve.utils.api_utils import cli_env_setup
    from vllm.logger import configure_logging_from_args

    cli_env_setup()
    try:
        args = vllm_parser()(argv)
    except ArgumentsRefused as exc:
        print(f"axiond: error: {exc}", file=sys.stderr)
        return 2
    configure_logging_from_args(args)
    entry.build_and_serve = warming_up(entry.build_and_serve)
    uvloop.run(entry.run_server(args))
    return 0


def warming_up(stock: Callable[..., Coroutine[Any, Any, _T]]) -> Callable[..., Coroutine[Any, Any, _T]]:
    """While the API server is set up, have its engine answer once: what is done for the first time is done by then."""

    async def build_and_serve(engine: Any, *args: Any, **kwargs: Any) -> _T:
        warming = asyncio.create_task(warm_up(engine))
        try:
            return await stock(engine, *args, **kwargs)
        finally:
            # It has served, and the engine may be gone: nobody would answer any more.
            warming.cancel()

    return build_and_serve


async def warm_up(engine: Any) -> None:
    from vllm import SamplingParams

    if "generate" in await engine.get_supported_tasks():
        # Sampled, as most requests are.
        params = SamplingParams(max_tokens=2, top_p=0.9, ignore_eos=True)
        async for _ in engine.generate({"prompt_token_ids": [0] * 16}, params, "warm-up"):
            pass


def main(argv: Sequence[str]) -> int:
    if argv != ["--check"]:
        return serve(argv)
    # Standard output is for answers only; vLLM logs there.
    with redirect_stdout(sys.stderr):
        parse = vllm_parser()
        answers = [check(parse, json.loads(line)) for line in sys.stdin]
    print(*map(json.dumps, answers), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
