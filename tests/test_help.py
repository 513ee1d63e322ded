"""What `--help` of every command says: that its examples stand, and that it fits the terminal."""

import importlib
import pathlib
import re
import subprocess
import sys

import pytest
from conftest import load_tool

from vivit_jax.config import default_config, flatten
from vivit_jax.help_text import laid_out

ROOT = pathlib.Path(__file__).parent.parent
MODULES = {
    'python -m vivit_jax.main': 'vivit_jax.main',
    'python -m vivit_jax.predict': 'vivit_jax.predict.__main__',
    'python -m vivit_jax.report': 'vivit_jax.report.__main__',
    'python -m vivit_jax.data.check': 'vivit_jax.data.check',
}
TOOLS = {f'python tools/{path.name}': path.stem for path in (ROOT / 'tools').glob('*.py')}
COMMANDS = MODULES | TOOLS
# Take the keys of the configuration as options as well.
TAKES_KEYS = '--config.'


@pytest.fixture
def help_of(monkeypatch, capsys):
    """Runs a command with --help, and returns what it says."""

    def run(command, width=80):
        monkeypatch.setenv('COLUMNS', str(width))
        monkeypatch.setattr(sys, 'argv', [command.split()[-1], '--help'])
        name = COMMANDS[command]
        module = importlib.import_module(name) if command in MODULES else load_tool(name)
        with pytest.raises(SystemExit) as ended:
            module.main()
        assert ended.value.code == 0
        return capsys.readouterr().out

    return run


def examples_of(text):
    """The commands among the examples, those broken over lines as one."""
    block = text.partition('\nexamples:\n')[2].partition('\n\n')[0]
    return [line.strip() for line in re.sub(r'\\\n +', '', block).splitlines()]


@pytest.mark.parametrize('command', sorted(COMMANDS))
def test_help_fits_and_its_examples_stand(command, help_of):
    text = help_of(command)
    assert max(map(len, text.splitlines())) <= 80
    # After the usage one sentence says what the command does.
    assert re.match(r'usage: [^\n]+\n( [^\n]+\n)*\n[A-Z][^\n]+', text)
    examples = examples_of(text)
    assert any(line.startswith(command + ' ') for line in examples)
    known = set(re.findall(r'--[a-z][\w-]*', text.partition('\noptions:\n')[2]))
    keys = flatten(default_config())
    for line in examples:
        if not line.startswith(command):
            continue
        for option in re.findall(r' (--[a-z][\w.-]*)', line.partition(' -- ')[0]):
            if option.startswith(TAKES_KEYS):
                assert option.removeprefix(TAKES_KEYS) in keys, option
            else:
                assert option in known, option
        for path in re.findall(r'configs/\w+\.py', line):
            assert (ROOT / path).is_file(), path


@pytest.mark.parametrize('command', sorted(MODULES))
def test_help_goes_on_wide_terminals(command, help_of):
    text = help_of(command, width=200)
    assert 90 < max(map(len, text.splitlines())) <= 200


def test_all_exit_codes_of_a_run_are_in_one_place(help_of):
    text = help_of('python -m vivit_jax.main').partition('exit codes:\n')[2].partition('\n\n')[0]
    assert re.findall(r'^  (\d[\d, ]*\d|\d)  +\S', text, re.MULTILINE) == [
        '0',
        '1',
        '2',
        '75',
        '129, 130, 143',
    ]


@pytest.mark.parametrize('module', ['vivit_jax.main', 'vivit_jax.predict'])
def test_the_help_of_a_run_does_not_wait_for_jax(module):
    code = (
        'import atexit, runpy, sys; atexit.register(lambda: print("jax" in sys.modules)); '
        f'sys.argv = ["x", "--help"]; runpy.run_module("{module}", run_name="__main__", alter_sys=True)'
    )
    result = subprocess.run(
        [sys.executable, '-c', code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert result.stdout.endswith('False\n')


def test_how_text_is_laid_out():
    source = """\
Does this, and that.

A paragraph of two lines
that becomes one.

examples:
  python tools/x.py --option=one --option=two --option=three
  curl -LO http://x

names:
  a       short
  b, bee  a meaning that is longer, and
          has two lines here
"""
    assert laid_out(source, 34).splitlines() == [
        'Does this, and that.',
        '',
        'A paragraph of two lines that',
        'becomes one.',
        '',
        'examples:',
        '  python tools/x.py --option=one \\',
        '      --option=two \\',
        '      --option=three',
        '  curl -LO http://x',
        '',
        'names:',
        '  a       short',
        '  b, bee  a meaning that is',
        '          longer, and has two',
        '          lines here',
    ]
    assert laid_out(None) == ''


def test_full_lines_of_indented_prose_go_on():
    full = '  ' + ' '.join(['word'] * 20)
    assert laid_out(f'{full}\n  more\n', 200) == f'{full} more'
    assert laid_out('  short\n  more\n', 200) == '  short\n  more'
