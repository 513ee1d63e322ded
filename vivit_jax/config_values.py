"""Values of a configuration: which ones can stand where a default stands, and how they are written as text."""

import ast
import re
from typing import Any


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
    except (KeyError, TypeError, ValueError, SyntaxError) as error:
        raise ValueError(f'config.{key}={text!r}: must be {kind(default)}') from error


def _parse_tuple(text: str, of_text: bool) -> tuple[Any, ...]:
    if of_text:
        return tuple(part for part in re.split(r'[\s,\'"()\[\]]+', text) if part)
    value = ast.literal_eval(text)
    return tuple(value) if isinstance(value, tuple | list) else (value,)


def kind(default: Any) -> str:
    """Says what can stand where a default stands."""
    if isinstance(default, bool):
        return f'true or false, as {default}'
    if isinstance(default, tuple):
        return f'{len(default)} values, as {default}' if default else 'whole numbers, as (400,), or ()'
    return f'{type(default).__name__}, as {default!r}'


def alike(value: Any, default: Any) -> bool:
    """Tells whether a value can stand where a default stands."""
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
