"""Values of a configuration: which ones can stand where a default stands, and how they are written as text."""

import ast
import re
import warnings
from typing import Any

CONTROL = re.compile('[\x00-\x1f\x7f-\x9f]')  # what a terminal or a file system takes for a command
LONGEST = 1_000  # letters of a text, as of paths
MOST = 1_000  # values of a setting
LARGEST = 2.0**63


def parse(key: str, text: str, default: Any) -> Any:
    """Turns text from a command line into a value of the default's type.

    Raises:
        ValueError: If it is none; names the key, the text and what can stand there.
    """
    if default is None or isinstance(default, str):
        return text
    try:
        if isinstance(default, bool):
            return {'true': True, '1': True, 'false': False, '0': False}[text.lower()]
        if isinstance(default, tuple):
            value = _parse_tuple(text, of_text=bool(default) and isinstance(default[0], str))
            if not alike(value, default):
                raise ValueError(value)
            return value
        return type(default)(text)
    except (KeyError, TypeError, ValueError, SyntaxError, RecursionError, MemoryError) as error:
        # Without its cause: the parser runs out of its own stack, not out of memory.
        raise ValueError(f'config.{key}={shown(text)}: must be {kind(default)}') from (
            None if isinstance(error, MemoryError) else error
        )


def _parse_tuple(text: str, of_text: bool) -> tuple[Any, ...]:
    if of_text:
        return tuple(part for part in re.split(r'[\s,\'"()\[\]]+', text) if part)
    if len(text) > LONGEST:
        raise ValueError(len(text))
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # of text that is no expression, which is told below
        value = ast.literal_eval(text)
    return tuple(value) if isinstance(value, tuple | list) else (value,)


def kind(default: Any) -> str:
    """Says what can stand where a default stands."""
    if isinstance(default, bool):
        return f'true or false, as {default}'
    if default is None:
        return 'str'
    if isinstance(default, tuple):
        return f'{len(default)} values, as {default}' if default else 'whole numbers, as (400,), or ()'
    return f'{type(default).__name__}, as {default!r}'


def shown(value: Any) -> str:
    """Returns a value as Python writes it, without its middle where it is long."""
    text = repr(value)
    return text if len(text) <= 200 else f'{text[:100]} … {text[-100:]}'


def flaw(value: Any) -> str:
    """Says why no setting can have a value, of whatever type; '' if one can."""
    parts = value if isinstance(value, tuple) else (value,)
    if len(parts) > MOST:
        return f'has {len(parts):,} values: at most {MOST:,}'
    for part in parts:
        if isinstance(part, str) and CONTROL.search(part):
            return 'must have no control characters'
        if isinstance(part, str) and len(part) > LONGEST:
            return f'has {len(part):,} letters: at most {LONGEST:,}'
        if isinstance(part, int | float) and not abs(part) < LARGEST:  # nor a NaN
            return 'must be a finite number, of 18 digits at most'
    return ''


def alike(value: Any, default: Any) -> bool:
    """Tells whether a value can stand where a default stands."""
    if default is None:
        return value is None or isinstance(value, str)
    if isinstance(default, tuple):
        if not isinstance(value, tuple):
            return False
        # Names are as many as one likes, as are the classes of heads; sizes and ranges are not.
        example = default[0] if default else 0
        any_length = not default or isinstance(example, str)
        return (any_length or len(value) == len(default)) and all(alike(part, example) for part in value)
    if isinstance(default, bool) or isinstance(value, bool):
        return isinstance(value, bool) and isinstance(default, bool)
    return isinstance(value, int | float if isinstance(default, float) else type(default))
