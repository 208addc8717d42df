"""How a command ends: what a user can get wrong is one line, a mistake in the program keeps its traceback."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from typing import Any, NoReturn

import typer
from typer.core import TyperGroup

from hggraph._screen import harmless, one_line, screen

__all__ = ["TRACEBACK", "Commands"]

TRACEBACK = "HGGRAPH_TRACEBACK"
# what Python raises of code that is wrong; everything else says what a file, an option or a machine lacks
MISTAKES = (
    *(ArithmeticError, AssertionError, AttributeError, ImportError, LookupError, NameError, NotImplementedError),
    *(RecursionError, StopIteration, SyntaxError, Warning),
)
# modules whose distribution, by which `hggraph info` knows them, has another name
DISTRIBUTIONS = {"skimage": "scikit-image", "sklearn": "scikit-learn", "yaml": "jsonargparse"}


class Commands(TyperGroup):
    """The group of all commands; whatever one of them raises ends here, and only here.

    Exit codes: 0; 1 for what could not be done, and for mistakes in the program; 2 for wrong arguments; 130 after
    Ctrl-C. With ``HGGRAPH_TRACEBACK=1`` in the environment every error keeps its traceback.
    """

    def main(self, *args: Any, **options: Any) -> NoReturn:
        """Run a command and leave the process."""
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="backslashreplace")  # any encoding can show any name
        try:
            # without "standalone" the errors of the command line come through, and an exit is a number
            code = super().main(*args, **options | {"standalone_mode": False})
            print(end="", flush=True)  # a full disk shows here, not after the end; of a closed output nothing is asked
        except typer.Abort:
            code = 130
        except BrokenPipeError:
            code = _nobody_reads()
        except Exception as error:
            if os.environ.get(TRACEBACK) or (text := _said(error)) is None:
                raise
            if text:
                _report(text)
            code = getattr(error, "exit_code", 1)
        if code == 130:
            _report("interrupted")
        sys.exit(code if isinstance(code, int) else 0)


def _said(error: Exception) -> str | None:
    """Return an error in one line, empty where help was shown instead; None for a mistake in the program."""
    if isinstance(error, ImportError):
        return _missing(error)
    if isinstance(error, MISTAKES):
        return None
    if not hasattr(error, "format_message"):
        return one_line(error)
    text = " ".join(error.format_message().removeprefix("Invalid value: ").split())
    context = getattr(error, "ctx", None)
    return harmless(text if context is None or not text else f"{text.rstrip('.')}. See {context.command_path} --help.")


def _missing(error: ImportError) -> str | None:
    """Return which extra brings a library that is missing; None if it is none of them."""
    from hggraph.cli.info import PACKAGES

    module = (error.name or "").partition(".")[0]
    extra = PACKAGES.get(DISTRIBUTIONS.get(module, module))
    if extra is not None:
        return f'{module} is not installed: pip install "hggraph[{extra}]"'
    return one_line(error) if "pip install" in str(error) else None


def _report(text: str) -> None:
    with contextlib.suppress(OSError):  # nobody reads, or there is no room
        screen(stderr=True).print(f"error: {text}", style="red")


def _nobody_reads() -> int:
    """Let the reader of a pipe leave early, as `head` does: what is still buffered goes nowhere."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 1
