"""What is printed for people: lines that are never broken, and names that cannot steer a terminal."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.text import Text

__all__ = ["harmless", "one_line", "screen"]


class _Screen(Console):
    """Shows text as it is: a name in brackets is no markup, and a control character no command."""

    def render_str(self, text: str, **options: Any) -> Text:
        """Return text with its control characters written out."""
        return super().render_str(harmless(text), **options)


def screen(*, stderr: bool = False) -> Console:
    r"""Return a console that breaks no line, no name and no cell of a table, and paints neither numbers nor paths.

    Lines are as long as they are; a terminal wraps them itself. Give it text as ``str``: a rich `Text` is printed
    unchecked.

    Args:
        stderr: Print to the standard error, which has the terminal's width for progress bars.

    Example:
        >>> screen().print("a [red] name \x1b[2J.png")
        a [red] name \x1b[2J.png
    """
    return _Screen(
        stderr=stderr, soft_wrap=True, markup=False, highlight=False, emoji=False, width=None if stderr else 10_000
    )


def harmless(text: str) -> str:
    r"""Return text whose control characters, line breaks, and bytes that are no text are written out, as `repr` does.

    Example:
        >>> harmless("a\x1b[31m\n\udcff é.png")
        'a\\x1b[31m\\n\\udcff é.png'
    """
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def one_line(error: BaseException) -> str:
    r"""Return what an error says on one line: of files first which, then what.

    An error without a text gives its kind.

    Example:
        >>> one_line(ValueError("too\n  few")), one_line(FileNotFoundError(2, "No such file or directory", "a b.png"))
        ('too few', 'a b.png: No such file or directory')
    """
    text = str(error)
    if isinstance(error, OSError) and error.strerror:
        text = error.strerror if error.filename is None else f"{error.filename}: {error.strerror}"
    kind = "out of memory" if isinstance(error, MemoryError) else type(error).__name__
    return harmless(" ".join(text.split())) or kind
