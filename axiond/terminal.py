"""What the command line writes: tables for people, JSON for programs."""

import os
import sys
from typing import Final

import typer
from rich.console import Console, RenderableType

from axiond.report import Report

PIPE_WIDTH: Final = 160


def console() -> Console:
    """Strings are printed literally; a pipe gets lines wide enough not to break tables."""
    width = None if sys.stdout.isatty() or "COLUMNS" in os.environ else PIPE_WIDTH
    return Console(width=width, markup=False, emoji=False, highlight=False)


def put(output: RenderableType | Report) -> None:
    if isinstance(output, Report):
        typer.echo(output.model_dump_json(indent=2))
    else:
        console().print(output, soft_wrap=isinstance(output, str))


def put_line(report: Report) -> None:
    sys.stdout.write(report.model_dump_json() + "\n")
    sys.stdout.flush()


def complain(message: str) -> None:
    sys.stderr.write(f"axiond: {message}\n")


def counted(number: int, word: str) -> str:
    return f"{number:,} {word}{'' if number == 1 else 's'}"
