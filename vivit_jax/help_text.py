"""Help of commands, as wide as the terminal: a module's docstring laid out anew."""

import argparse
import re
import shutil
import textwrap

WIDEST = 118  # as wide as sources are
FULL = 90  # characters: a longer line was broken because it was full
EXAMPLE = re.compile(r'(\w+=\S+ )*(python|curl|pip) ')
# A word and what it means, with a gap between them.
ENTRY = re.compile(r'(\S+( \S+)*? {2,})\S')


def parser(text: str | None, *, prog: str | None = None, usage: str | None = None) -> argparse.ArgumentParser:
    """Returns the parser of a command, whose options are written in full.

    Args:
        text: The docstring of the command, which its help begins with.
        prog: How it is called; None is by the name of its file.
        usage: The line of that name; None is one that lists all options.
    """
    return argparse.ArgumentParser(
        prog=prog,
        usage=usage,
        description=laid_out(text),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def laid_out(text: str | None, width: int = 0) -> str:
    """Breaks the lines of a docstring anew.

    Paragraphs are filled. Indented lines stay lines of their own unless the one before was full; deeper ones below
    them are their continuation. Commands are broken with a backslash, so that they can be copied; entries, a word,
    two spaces and its meaning, go on below the meaning.

    Args:
        text: A docstring of a command.
        width: In characters; 0 is that of the terminal, at most `WIDEST`.
    """
    width = width or min(shutil.get_terminal_size().columns - 2, WIDEST)
    blocks: list[str] = []
    last = ''
    for line in (text or '').strip('\n').splitlines():
        if blocks and _goes_on(blocks[-1], last, line):
            blocks[-1] = f'{blocks[-1]} {line.strip()}'
        else:
            blocks.append(line)
        last = line
    return '\n'.join(_broken(block, width) for block in blocks)


def _goes_on(block: str, last: str, line: str) -> bool:
    """Tells whether a line goes on what a block says, whose last line is `last`."""
    if not line.strip() or not last.strip() or last.endswith((':', '\\')):
        return False
    deeper = _indent(line) - _indent(block)
    if deeper or not _indent(line):
        return deeper >= 0
    alone = any(_is_example(some) or _entry(some) for some in (block, line))
    return len(last) > FULL and not alone


def _is_example(block: str) -> bool:
    return _indent(block) > 0 and EXAMPLE.match(block.strip()) is not None and not _entry(block)


def _entry(block: str) -> str:
    """Returns the word of an entry, with the gap after it; '' if it is none."""
    match = ENTRY.match(block.strip()) if _indent(block) else None
    return match[1] if match else ''


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())


def _broken(block: str, width: int) -> str:
    indent, is_example = ' ' * _indent(block), _is_example(block)
    lines = textwrap.wrap(
        block.strip(),
        width - 2 * is_example,
        initial_indent=indent,
        subsequent_indent=indent + ' ' * (4 if is_example else len(_entry(block))),
        break_long_words=False,
        break_on_hyphens=False,
    )
    return (' \\\n' if is_example else '\n').join(lines)
