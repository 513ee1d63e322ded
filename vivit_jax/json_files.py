"""JSON that others wrote: what is wrong with it is told in one line, and nothing in it breaks what reads on."""

import json
from typing import Any

from vivit_jax import paths

MOST_BYTES = 256 * 2**20
DEEPEST = 60  # levels of brackets; what runs and models write has at most six
DIGITS = 19  # of a whole number: more do not fit 64 bits


def loads(text: str | bytes) -> Any:
    """Returns the value that a text is.

    Raises:
        ValueError: One line: if it is no JSON, or is nested or holds whole numbers as no file of ours does.
    """
    if isinstance(text, bytes):
        try:
            text = text.decode('utf-8-sig')
        except UnicodeDecodeError as error:
            raise ValueError(f'not UTF-8: byte {error.start:,} is {error.object[error.start]:#04x}') from None
    try:
        value = json.loads(text, parse_int=_whole)
    except RecursionError:
        raise ValueError(f'nested more than {DEEPEST} levels deep') from None
    except json.JSONDecodeError as error:
        raise ValueError(str(error)) from None
    _check_depth(value)
    return value


def _whole(digits: str) -> int:
    if len(digits) > DIGITS:
        raise ValueError(f'a whole number of {len(digits):,} digits: at most {DIGITS}')
    return int(digits)


def _check_depth(value: Any) -> None:
    level = [value]
    for _ in range(DEEPEST):
        level = [
            inner
            for outer in level
            if isinstance(outer, dict | list)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
        if not level:
            return
    raise ValueError(f'nested more than {DEEPEST} levels deep')


def read(path: paths.Path) -> Any:
    """Reads a file of JSON.

    Raises:
        ValueError: One line that begins with the path.
        OSError: If it cannot be opened.
    """
    content = path.read_bytes()
    try:
        if len(content) > MOST_BYTES:
            raise ValueError(f'{len(content):,} bytes: at most {MOST_BYTES:,}')
        return loads(content)
    except ValueError as error:
        raise ValueError(f'{path}: is no JSON: {error}') from error


def read_object(path: paths.Path) -> dict[str, Any]:
    """Reads a file of JSON that holds an object.

    Raises:
        ValueError: One line that begins with the path.
        OSError: If it cannot be opened.
    """
    content = read(path)
    if not isinstance(content, dict):
        raise ValueError(f'{path}: holds {type(content).__name__} instead of a JSON object')
    return content
