"""Names as they may be shown: files, classes and messages come from anywhere, and a terminal takes commands."""

from typing import Any


def printable(text: str) -> str:
    """Returns a line without what a terminal would take for a command or cannot show."""
    if text.isprintable():
        return text
    return ''.join(letter if letter.isprintable() else '\N{REPLACEMENT CHARACTER}' for letter in text)


def printable_lines(text: str) -> str:
    """Returns some lines, each `printable`."""
    return '\n'.join(map(printable, text.split('\n')))


def warning_line(message: Any, *_: Any, **__: Any) -> str:
    """Says a warning as a user sees it; for `warnings.formatwarning`."""
    return f'warning: {printable_lines(str(message))}\n'
