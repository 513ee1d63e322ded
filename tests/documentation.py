"""The commands in README.md, CONTRIBUTING.md and docs/: found, taken apart, and run on small stand-ins.

Before every block of commands (indented by four, or fenced as sh or python) stands a comment that nobody sees:

    <!-- run -->                            tests/test_documentation.py runs it
    <!-- tested: tests/test_x.py::test_y -->    that test runs the same
    <!-- not run: REASON -->                nothing does

The blocks of a page marked so are run one after another, in one new folder, by `python tests/documentation.py PAGE`.
What they name is made there first (`stand_ins`) and configurations are made small (`SMALL`); everything else stays as
it is written. Installing and downloading are left out.
"""

import argparse
import importlib
import importlib.util
import itertools
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple
from unittest import mock

import markdown_it
import stand_ins

ROOT = pathlib.Path(__file__).parent.parent
# Programs of tools/ are imported by their names, so that processes that they start find them too.
sys.path.append(str(ROOT / 'tools'))
PAGES = [
    'README.md',
    'CONTRIBUTING.md',
    *(f'docs/{path.name}' for path in sorted((ROOT / 'docs').glob('*.md'))),
]
# What a line of commands begins with, but for assignments of variables.
PROGRAMS = (
    *('python', 'python3', 'pip', 'pytest', 'tensorboard', 'nvidia-smi'),
    *('cd', 'mkdir', 'source', 'git', 'curl', 'gunzip', 'ssh'),
    *('gcloud', 'srun', 'sbatch', 'kubectl', 'docker', 'until'),
)
ASSIGNMENT = re.compile(r'[A-Z_]+=')
COMMAND = re.compile(rf'(?:{ASSIGNMENT.pattern}\S+\s+)*(?:{"|".join(PROGRAMS)})\s|\.ci/run')
MARK = re.compile(r'<!-- (run|tested|not run)(?:: ([^>]+))? -->')

# Settings that come before a command's own, so that what it sets itself stays.
MODEL = {'num_layers': 2, 'temporal_layers': 1, 'num_heads': 4, 'width': 32, 'mlp_dim': 64}
QUICK = {
    **{f'model.{key}': value for key, value in MODEL.items()},
    'training.steps': 2,
    'training.log_every': 1,
    'training.batch_size': 4,
    'optimizer.warmup_steps': 1,
    'evaluation.every_steps': 2,
    'evaluation.batch_size': 12,
    'data.threads': 2,
}
VIDEOS = {
    'data.frames': 4,
    'data.stride': 2,
    'data.short_side': 36,
    'data.crop': '32,32',
    'model.tubelet': '2,8,8',
}
VOLUMES = {'data.frames': 16, 'data.crop': '16,16', 'model.tubelet': '8,8,8'}
SMALL: dict[str, dict[str, Any]] = {
    'moving_digits': QUICK
    | {f'data.moving_digits.{split}_size': 12 for split in ('train', 'validation', 'test')},
    'volumes': QUICK | VOLUMES,
    'medmnist': QUICK | {'evaluation.batch_size': 16},
    **dict.fromkeys(('video_files', 'frame_folders', 'array_record', 'tfds', 'tfrecords'), QUICK | VIDEOS),
}
# Further options of programs that would take long.
FEWER = {
    'tools/compare_models.py': ['--models', 'divided'],
    'tools/benchmark_data.py': ['--rounds=1', '--clips=2', '--threads=1'],
}
# What is large in Python.
PYTHON = {
    '(1, 32, 224, 224, 3)': '(1, 4, 32, 32, 3)',
    'create_model(num_classes=400,': 'create_model(num_classes=400, tubelet=(2, 8, 8), '
    f'{", ".join(f"{key}={value}" for key, value in MODEL.items())},',
}


class Block(NamedTuple):
    """A block of code: where it is, as `docs/data.md:24`, its text, and what its mark says (None: no mark)."""

    where: str
    language: str
    text: str
    mark: str | None
    reason: str

    @property
    def commands(self) -> list[str]:
        """Lines that are commands; lines that go on in the next one are one."""
        if self.language == 'python':
            return []
        lines = re.sub(r'\\\n\s*', '', self.text).splitlines()
        return [line.strip() for line in lines if COMMAND.match(line.strip() + ' ')]

    @property
    def needs_mark(self) -> bool:
        """Tells whether it is for the reader to run."""
        return bool(self.commands) or self.language in ('python', 'sh')


def blocks(page: str) -> list[Block]:
    """Finds the blocks of a page, fenced and indented ones, as code hosts do."""
    tokens = markdown_it.MarkdownIt().parse((ROOT / page).read_text(encoding='utf-8'))
    found = []
    for before, token in itertools.pairwise([None, *tokens]):
        if token.type not in ('fence', 'code_block') or token.map is None:
            continue
        mark = MARK.fullmatch(before.content.strip()) if before and before.type == 'html_block' else None
        kind, reason = (mark[1], mark[2] or '') if mark else (None, '')
        where = f'{page}:{token.map[0] + 1}'
        found.append(Block(where, token.info.strip(), token.content.rstrip(), kind, reason))
    return found


def calls(line: str) -> Iterator[list[str]]:
    """Takes a line of commands apart: the words of each, also of those that another is given as one word."""
    words = shlex.shlex(line, posix=True, punctuation_chars='&;|<>')
    words.whitespace_split = True
    call: list[str] = []
    for word in [*words, ';']:
        if set(word) <= set('&;|<>'):
            if call:
                yield call
            call = []
        elif COMMAND.search(word) and ' ' in word:
            yield from calls(re.sub(r'^--\w+=', '', word))
        else:
            call.append(word)


def python_call(call: Sequence[str]) -> tuple[str, list[str]] | None:
    """Returns the module or file that a command runs in Python, and its arguments; None for other commands."""
    for place, word in enumerate(call):
        if word in ('python', 'python3') and len(call) > place + 1:
            rest = list(call[place + 1 :])
            return (rest[1], rest[2:]) if rest[0] == '-m' else (rest[0], rest[1:])
    return None


def main_of(program: str) -> Callable[[list[str]], Any]:
    """Returns what runs a program of ours with arguments: `tools/NAME.py`, or a module of the package."""

    def run(arguments: list[str]) -> Any:
        with mock.patch.object(sys, 'argv', [program, *arguments]):
            if program.endswith('.py'):
                return importlib.import_module(pathlib.Path(program).stem).main()
            package = importlib.util.find_spec(f'{program}.__main__') if _is_package(program) else None
            return importlib.import_module(f'{program}.__main__' if package else program).main()

    return run


def _is_package(name: str) -> bool:
    spec = importlib.util.find_spec(name)
    return bool(spec and spec.submodule_search_locations)


class _Caught(Exception):
    """Carries a program's parser out of it."""


def parser_of(program: str) -> argparse.ArgumentParser:
    """Returns the parser of a program of ours, taken from it before it parses anything."""

    def catch(parser: argparse.ArgumentParser, *_: Any, **__: Any) -> Any:
        raise _Caught(parser)

    with mock.patch.object(argparse.ArgumentParser, 'parse_known_args', catch):
        try:
            main_of(program)([])
        except _Caught as caught:
            return caught.args[0]
    raise AssertionError(f'{program} parses no options')


# --- Running a page ---


def small(program: str, arguments: list[str]) -> list[str]:
    """Returns the arguments with those before them that make a configuration of configs/ small."""
    from vivit_jax import command_line, main
    from vivit_jax import config as config_module

    spec = next((word[9:] for word in arguments if word.startswith('--config=')), '')
    if program == 'tools/compare_models.py':
        spec = 'configs/moving_digits.py'
    more = FEWER.get(program, [])
    if not spec.startswith('configs/'):
        return [*arguments, *(['--config.evaluation.batch_size=12'] if spec.endswith('.json') else []), *more]
    keys = [word for word in arguments if word.startswith('--config.')]
    config = config_module.load(spec, command_line.overrides(argparse.ArgumentParser(), keys))
    settings = [f'--config.{key}={value}' for key, value in SMALL[config.data.source].items()]
    if program == 'vivit_jax.main' and not any(word.startswith('--workdir') for word in arguments):
        # The folder that the command is said to write to; a page may train several times in the same one.
        folder = main.default_workdir(spec, config)
        if not any(word.startswith('--mode=') for word in arguments):
            shutil.rmtree(folder, ignore_errors=True)
        more = [*more, f'--workdir={folder}']
    return [*settings, *arguments, *more]


def run(call: Sequence[str]) -> None:
    """Runs one command of ours; anything else installs or downloads, and is left out."""
    ours = python_call(call)
    variables = dict(word.split('=', 1) for word in itertools.takewhile(ASSIGNMENT.match, call))
    if ours and variables:
        rest = call[len(variables) :]
        subprocess.run([sys.executable, __file__, '--', *rest], env=os.environ | variables, check=True)
        return
    if ours is None or not (ours[0].startswith('vivit_jax') or (ROOT / ours[0]).is_file()):
        print('left out:', *call, flush=True)
        return
    program, arguments = ours[0], small(*ours)
    print('$', program, *arguments, flush=True)
    try:
        code = main_of(program)(arguments)
    except SystemExit as ended:
        code = ended.code
    # The check of data exits with 1 where it found something bad: it did what it is for.
    allowed = (0, 1) if program == 'vivit_jax.data.check' else (0,)
    if (code or 0) not in allowed:
        raise SystemExit(f'exit code {code}')


def run_page(page: str) -> None:
    """Runs the blocks of a page that say so, in the current folder."""
    for name in ('configs', 'tools'):
        pathlib.Path(name).symlink_to(ROOT / name)
    # What is written to a folder of the repository is written here.
    pathlib.Path('docs').mkdir()
    for block in blocks(page):
        if block.mark != 'run':
            continue
        print(f'--- {block.where}', flush=True)
        stand_ins.make(page, block.text)
        if block.language == 'python':
            text = block.text
            for large, little in PYTHON.items():
                text = text.replace(large, little)
            exec(compile(text, block.where, 'exec'), {})
        for command in block.commands:
            stand_ins.make(page, command)
            for call in calls(command):
                run(call)


if __name__ == '__main__':
    if sys.argv[1] == '--':
        run(sys.argv[2:])
    else:
        run_page(sys.argv[1])
