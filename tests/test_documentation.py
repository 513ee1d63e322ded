"""README, CONTRIBUTING and docs/: every command is known, run or marked with why not; links and keys exist."""

import difflib
import importlib.util
import os
import re
import subprocess
import sys

import documentation
import pytest
from documentation import PAGES, ROOT, blocks, calls, parser_of, python_call

from vivit_jax import command_line
from vivit_jax import config as config_module
from vivit_jax.config import default_config, flatten

MENTIONED = re.compile(r'(tests/\w+\.py)::(\w+)')
BLOCKS = [block for page in PAGES for block in blocks(page)]
COMMANDS = [(block.where, line) for block in BLOCKS for line in block.commands]
TEXTS = {page: (ROOT / page).read_text(encoding='utf-8') for page in PAGES}
KEYS = set(flatten(default_config()))
ENDINGS = ('py', 'md', 'json', 'csv', 'safetensors', 'npz')
GROUPS = {key.rpartition('.')[0] for key in KEYS}


# --- Marks ---


@pytest.mark.parametrize(
    'block', [block for block in BLOCKS if block.needs_mark], ids=lambda block: block.where
)
def test_every_block_of_commands_is_marked(block):
    assert block.mark, (
        f'write <!-- run -->, <!-- tested: TEST --> or <!-- not run: REASON --> before {block.where}'
    )
    assert (block.mark == 'run') == (not block.reason)
    if block.mark == 'tested':
        assert MENTIONED.fullmatch(block.reason), f'{block.where}: name a test'


def test_marks_stand_before_blocks():
    """A mark that belongs to nothing would promise something."""
    for page, text in TEXTS.items():
        marked = [block for block in blocks(page) if block.mark and block.needs_mark]
        assert len(documentation.MARK.findall(text)) == len(marked), page


# --- What commands say ---


@pytest.mark.parametrize(
    ('where', 'line'), COMMANDS, ids=[f'{where}-{line[:40]}' for where, line in COMMANDS]
)
def test_programs_options_and_keys_are_known(where, line, monkeypatch):
    for call in calls(line):
        ours = python_call(call)
        if call[:2] == ['pip', 'install']:
            extras = {extra for word in call for extra in re.findall(r'\[([\w,]+)\]', word)}
            for extra in extras:
                assert f'\n{extra} =' in (ROOT / 'setup.cfg').read_text(), f'{where}: no extra {extra}'
        elif ours and (ours[0].startswith('vivit_jax') or '/' in ours[0]):
            _check(*ours, where, monkeypatch)


def _check(program, arguments, where, monkeypatch):
    """Lets the program's own parser read the arguments, and the configuration the keys among them."""

    def error(message):
        raise AssertionError(f'{where}: {program}: {message}')

    there = (ROOT / program).is_file() if program.endswith('.py') else importlib.util.find_spec(program)
    assert there, f'{where}: there is no {program}'
    parser = parser_of(program)
    monkeypatch.setattr(parser, 'error', error)
    parsed, rest = parser.parse_known_args(arguments)
    keys = command_line.overrides(parser, rest)
    spec = getattr(parsed, 'config', None) or ''
    known = spec if (ROOT / spec.partition(':')[0]).is_file() else 'configs/base.py'
    monkeypatch.chdir(ROOT)
    config_module.load(known, keys)


def test_a_misspelt_key_or_option_is_found(monkeypatch):
    command = 'python -m vivit_jax.main --config=configs/my_videos.py '
    for slip, message in {
        '--config.data.rot=X': 'data.rot is not a key; did you mean config.data.root?',
        '--config.data.frames=many': 'must be int',
        '--wrokdir=X': 'is no option',
        '--mode=fit': 'invalid choice',
    }.items():
        with pytest.raises((AssertionError, ValueError), match=re.escape(message)):
            test_programs_options_and_keys_are_known('here', command + slip, monkeypatch)
    with pytest.raises(AssertionError, match=r'there is no tools/compare_modles\.py'):
        test_programs_options_and_keys_are_known('here', 'python tools/compare_modles.py', monkeypatch)
    with pytest.raises(AssertionError, match='no extra vloumes'):
        test_programs_options_and_keys_are_known('here', "pip install 'vivit_jax[vloumes]'", monkeypatch)


def test_commands_inside_others_are_seen():
    line = "gcloud ssh pod --worker=all --command='cd vivit && JAX_X=1 python -m vivit_jax.main --config=x'"
    assert list(calls(line)) == [
        ['cd', 'vivit'],
        ['JAX_X=1', 'python', '-m', 'vivit_jax.main', '--config=x'],
        ['gcloud', 'ssh', 'pod', '--worker=all'],
    ]


@pytest.mark.parametrize('page', PAGES)
def test_keys_in_the_text_are_known(page):
    text = TEXTS[page]
    # Of KEY in capitals only the group is known.
    named = {key.removesuffix('.KEY') for key in re.findall(r'--config\.([a-z][\w.]*\w)', text)}
    # In code, as `data.max_bad` or `training.loss=sigmoid`; Scenic's own fields look alike (test_scenic_document.py).
    for code in re.findall(r'`([^`\n]+)`', text) if page != 'docs/scenic.md' else ():
        match = re.match(r'([a-z_]+(?:\.[a-z_\d]+)+)(?![\w(/])', code)
        if match and match[1].partition('.')[0] in GROUPS and match[1].rpartition('.')[2] not in ENDINGS:
            named.add(match[1])
    for key in named - GROUPS:
        near = difflib.get_close_matches(key, KEYS, n=1, cutoff=0.0)
        assert key in KEYS, f'{page} names {key}; did it mean {near[0]}?'


# --- Links ---


def anchors(text):
    """The places of a page that can be linked to: headings, as code hosts name them, and those with an id."""
    headings = re.findall(r'^#+ (.*)$', text, re.MULTILINE)
    plain = [re.sub(r'[^\w\- ]', '', heading.lower()).replace(' ', '-') for heading in headings]
    return {*plain, *re.findall(r'<a id="([^"]+)">', text)}


@pytest.mark.parametrize('page', PAGES)
def test_links_lead_somewhere(page):
    for address, place in re.findall(r'\]\(([^)#\s]*)(?:#([^)\s]+))?\)', TEXTS[page]):
        if re.match(r'\w+:', address):
            assert address.startswith('https://')
            continue
        target = (ROOT / page).parent / address if address else ROOT / page
        assert target.exists(), f'{page}: {address}'
        if place:
            assert place in anchors(target.read_text(encoding='utf-8')), f'{page}: {address}#{place}'


@pytest.mark.parametrize('page', PAGES)
def test_files_that_are_named_exist(page):
    named = re.findall(
        r'(?<![\w./-])(?:configs|docs|examples|tests|tools|vivit_jax)/[\w/]+\.\w+', TEXTS[page]
    )
    for name in named:
        assert (ROOT / name).exists(), f'{page}: {name}'


@pytest.mark.parametrize('page', PAGES)
def test_tests_that_are_named_exist(page):
    for file, name in MENTIONED.findall(TEXTS[page]):
        assert f'\ndef {name}(' in (ROOT / file).read_text(), f'{page}: {file}::{name}'


# --- Running ---


@pytest.fixture(scope='module')
def programs(tmp_path_factory):
    """Where compiled programs are kept: the runs of all pages need much the same."""
    return tmp_path_factory.mktemp('programs')


@pytest.mark.slow
@pytest.mark.parametrize(
    'page', [page for page in PAGES if any(block.mark == 'run' for block in blocks(page))]
)
def test_commands_run(page, programs, tmp_path):
    """In a process of its own, on one device, in a new folder."""
    environment = {
        'JAX_PLATFORMS': 'cpu',
        'JAX_COMPILATION_CACHE_DIR': str(programs),
        'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
        # Good machine code takes longer to make than these runs last.
        'XLA_FLAGS': '--xla_backend_optimization_level=0',
        'XDG_CACHE_HOME': str(tmp_path / 'cache'),
        'VIVIT_JAX_TRACEBACK': '1',
    }
    folder = tmp_path / 'here'
    folder.mkdir()
    result = subprocess.run(
        [sys.executable, documentation.__file__, page],
        cwd=folder,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=900,
    )
    assert result.returncode == 0, result.stdout[-4000:]
    ran = [line.removeprefix('--- ') for line in result.stdout.splitlines() if line.startswith('--- ')]
    assert ran == [block.where for block in blocks(page) if block.mark == 'run']
