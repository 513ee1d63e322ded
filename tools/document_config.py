"""Writes docs/config.md: every key of the configuration with its default and meaning, as its source tells.

Keys, defaults and kinds of values are those of the default configuration; meanings are the comments beside them in
vivit_jax/config.py and vivit_jax/config_data.py.

examples:
  python tools/document_config.py            write docs/config.md
  python tools/document_config.py --check    say whether it is up to date (exit code 1 where it is not)
"""

import ast
import dataclasses
import io
import pathlib
import re
import sys
import tokenize
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import Any

from vivit_jax import config as config_module
from vivit_jax import config_data, help_text

DOCUMENT = pathlib.Path(__file__).parent.parent / 'docs' / 'config.md'
START = """\
# Configuration

Every key there is, with its default: the paper's recipe for Kinetics-400, a factorised encoder of size B/16x2. Each
is an option of the commands, `--config.KEY=VALUE`, and can be set in a file of `configs/`; a misspelt one is answered
with the nearest. Several values are written with commas, none as `'()'`.

<!-- run -->

    python -m vivit_jax.main --config=configs/moving_digits.py --config.data.crop=16,16 \\
        --config.data.moving_digits.canvas=16 --mode=dry_run

Keys marked with * may change when a run goes on, since what it learns does not depend on them; any other change is
refused, and the keys are named. A run writes all of its values to `config.json`, which is a configuration as well.

(Made by `tools/document_config.py` from `vivit_jax/config.py` and `vivit_jax/config_data.py`.)
"""


@dataclasses.dataclass(frozen=True)
class Key:
    """A key as its source tells: `meaning` of its own, `remark` on this one and those after it ('' where none)."""

    name: str
    meaning: str
    remark: str


def read_keys(modules: Sequence[ModuleType] = (config_module, config_data)) -> dict[str, Key]:
    """Reads what the comments say of every key, in the order of the source.

    A key is an assignment `variable.key = value` in `default_config` or in a function that it calls; its meaning is
    the comment beside it, else that above it. A comment above a key that has one beside it is a remark on the keys
    that follow.

    Raises:
        ValueError: If a key has no comment.
    """
    functions: dict[str, tuple[ast.FunctionDef, _Comments]] = {}
    for module in modules:
        source = pathlib.Path(module.__file__ or '').read_text(encoding='utf-8')
        comments = _Comments(source)
        functions |= {
            node.name: (node, comments)
            for node in ast.walk(ast.parse(source))
            if isinstance(node, ast.FunctionDef)
        }
    return {key.name: key for key in _keys_of('default_config', '', functions)}


class _Comments:
    """The comments of a file by line, and whether they stand alone."""

    def __init__(self, source: str):
        self._beside: dict[int, str] = {}
        self._alone: dict[int, str] = {}
        for token in tokenize.generate_tokens(io.StringIO(source).readline):
            if token.type == tokenize.COMMENT:
                alone = token.line.strip().startswith('#')
                (self._alone if alone else self._beside)[token.start[0]] = token.string.lstrip('# ')

    def of(self, node: ast.stmt) -> tuple[str, str]:
        """Returns what is said beside a statement, and above it."""
        assert node.end_lineno is not None
        lines = range(node.lineno, node.end_lineno + 1)
        beside = [self._beside[line] for line in lines if line in self._beside]
        above: list[str] = []
        line = node.lineno - 1
        while line in self._alone:
            above.insert(0, self._alone[line])
            line -= 1
        return ' '.join(beside), ' '.join(above)


def _keys_of(
    function: str, prefix: str, functions: dict[str, tuple[ast.FunctionDef, _Comments]]
) -> Iterator[Key]:
    """Walks a function's assignments, and those of the functions it calls for a group or on one."""
    node, comments = functions[function]
    # The variable that holds the group: what is returned, or the argument that is added to.
    returned = [
        statement.value.id
        for statement in node.body
        if isinstance(statement, ast.Return) and isinstance(statement.value, ast.Name)
    ]
    variable = (returned or [argument.arg for argument in node.args.args] or ['config'])[0]
    for statement in node.body:
        if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call):
            called = ast.unparse(statement.value.func)
            if called in functions:
                yield from _keys_of(called, prefix, functions)
        if not isinstance(statement, ast.Assign) or not isinstance(statement.targets[0], ast.Attribute):
            continue
        target, _, path = ast.unparse(statement.targets[0]).partition('.')
        if target != variable:
            continue
        name, value = prefix + path, statement.value
        called = ast.unparse(value.func) if isinstance(value, ast.Call) else ''
        if called in functions:
            yield from _keys_of(called, f'{name}.', functions)
        elif called != 'ConfigDict':
            beside, above = comments.of(statement)
            if not beside and not above:
                raise ValueError(f'config.{name} has no comment beside or above it')
            yield Key(name, beside or above, above if beside else '')


def page() -> str:
    """Returns the whole page, in Markdown."""
    keys = read_keys()
    values = config_module.flatten(config_module.default_config())
    if keys.keys() != values.keys():
        raise ValueError(f'keys that are not found in the source: {sorted(values.keys() ^ keys.keys())}')
    groups: dict[str, list[str]] = {}
    for name in keys:
        groups.setdefault(name.rpartition('.')[0], []).append(name)
    lines = [START, _contents(groups)]
    for group, names in groups.items():
        lines += [f'\n{"#" * (2 + group.count("."))} {_title(group)}']
        header = '\n| key | default | kind | meaning |\n| --- | --- | --- | --- |'
        for number, name in enumerate(names):
            if keys[name].remark:
                lines += [f'\n{_marked(keys[name].remark[:1].upper() + keys[name].remark[1:])}', header]
            elif number == 0:
                lines += [header]
            lines += [_row(keys[name], values[name])]
    lines += [_sizes()]
    return '\n'.join(lines) + '\n'


def _contents(groups: dict[str, list[str]]) -> str:
    titles = [_title(group) for group in [*groups, 'Sizes'] if '.' not in group]
    return ' · '.join(f'[{title}](#{_anchor(title)})' for title in titles)


def _title(group: str) -> str:
    return f'`{group}`' if group not in ('', 'Sizes') else group or 'The run'


def _anchor(title: str) -> str:
    """Returns what code hosts make of a heading."""
    return re.sub(r'[^\w\- ]', '', title.lower()).replace(' ', '-')


def _row(key: Key, value: Any) -> str:
    last = key.name.rpartition('.')[2]
    free = '*' if key.name in config_module.FREE_TO_CHANGE else ''
    cells = [f'<a id="{key.name}"></a>`{last}`{free}', _default(value), _kind(value), _meaning(key.meaning)]
    return f'| {" | ".join(cells)} |'


def _default(value: Any) -> str:
    if value is None:
        return 'not set'
    if isinstance(value, tuple):
        return f'`{",".join(str(part) for part in value)}`' if value else '`()`'
    if isinstance(value, bool):
        return f'`{str(value).lower()}`'
    return f'`{value}`' if value != '' else "`''`"


def _kind(value: Any) -> str:
    """Says in a word or two what values a key takes."""
    kinds = {bool: 'true or false', int: 'whole number', float: 'number', str: 'text', type(None): 'text'}
    if not isinstance(value, tuple):
        return kinds[type(value)]
    if not value:
        return 'whole numbers'
    return 'names' if isinstance(value[0], str) else f'{len(value)} {kinds[type(value[0])]}s'


def _meaning(comment: str) -> str:
    """Returns a comment as a cell of a table; choices, divided by bars, become code."""
    parts = comment.split(' | ')
    for place, part in enumerate(parts):
        if place:
            part = re.sub(r'^([\w.]+)', r'`\1`', part)
        if place < len(parts) - 1:
            # The last word but for what is said of it.
            part = re.sub(r'(?<![\w`.])([\w.]+)((?: \([^()]*\))?)$', r'`\1`\2', part)
        parts[place] = part
    return _marked(', '.join(parts))


def _marked(text: str) -> str:
    """Makes links of the documents that a comment names, and code of names, files and patterns."""
    words = re.split(r'(`[^`]*`|\s)', text)
    for place, word in enumerate(words):
        match = re.fullmatch(r"([(\[]*)(.*?)('s)?([)\],;:.]*)", word)
        if word.startswith('`') or not match:
            continue
        before, core, owner, after = (part or '' for part in match.groups())
        if document := re.fullmatch(r'docs/(\w+\.md)', core):
            words[place] = f'{before}[{document[1]}]({document[1]}){after}'
        elif core == "''" or (len(core) > 1 and re.search(r'[_*=</]|\w\.py$', core)):
            words[place] = f'{before}`{core}`{owner}{after}'
    return ''.join(words).replace('|', r'\|')


def _sizes() -> str:
    lines = [
        '\n## Sizes\n',
        'Configurations that take a size, as `configs/kinetics400_fe.py:L/16x2`, have it as '
        '`SIZE/PATCHxTUBELET[@FRAMES]`: patches',
        'of so many pixels, tubelets of so many frames, and where wanted the frames of a clip.\n',
        '| size | layers | heads | width | hidden size of the MLPs |',
        '| --- | --- | --- | --- | --- |',
    ]
    lines += [
        f'| {size} | {" | ".join(str(number) for number in numbers)} |'
        for size, numbers in config_module.SIZES.items()
    ]
    return '\n'.join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    parser = help_text.parser(__doc__)
    parser.add_argument('--check', action='store_true', help='write nothing')
    check = parser.parse_args(arguments).check
    written = DOCUMENT.read_text(encoding='utf-8') if DOCUMENT.is_file() else ''
    if page() == written:
        print(f'{DOCUMENT} is up to date')
    elif check:
        print(f'{DOCUMENT} is out of date: run python tools/document_config.py', file=sys.stderr)
        return 1
    else:
        DOCUMENT.write_text(page(), encoding='utf-8')
        print(f'written: {DOCUMENT}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
