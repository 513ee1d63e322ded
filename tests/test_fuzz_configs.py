"""Hostile configurations: options, arguments, JSON and Python files are understood, or refused in one clear line."""

import json
import pathlib
import shutil

import hostile
import jax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tiny import DIGITS, SETTINGS
from vivit_jax import config as config_module
from vivit_jax import experiment, main
from vivit_jax.config import default_config, flatten, load

CONFIGS = sorted((pathlib.Path(__file__).parent.parent / 'configs').glob('*.py'))
pytestmark = pytest.mark.filterwarnings('ignore::hypothesis.errors.HypothesisWarning')  # of long values
KEYS = list(flatten(default_config()))


@pytest.fixture(autouse=True)
def _as_users_see_it(unchecked):
    """Without the check of array types, which takes longest, and would object first."""


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """A folder of its own for the cases of a test, with nothing that may be read beside it."""
    jax.block_until_ready(jax.random.key(0))  # a backend starts without bounds on memory
    return tmp_path_factory.mktemp('cases') / 'inside'


@pytest.fixture(autouse=True)
def _fresh(folder, monkeypatch):
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    monkeypatch.chdir(folder)


def settled(spec: str, overrides: dict[str, str], mode: str = 'train') -> None:
    """Does with a configuration what a run does before it opens its data."""
    config = load(spec, overrides)
    experiment.check(config)
    workdir = pathlib.Path(main.default_workdir(spec, config, mode))
    assert workdir.parts[0] == 'runs'
    assert len(workdir.parts) == 2
    assert '..' not in workdir.parts
    assert str(workdir).isprintable()
    text = json.dumps(config.to_dict())
    again = config_module.from_values(json.loads(text), 'config.json')
    assert config_module.differences(again, config) == {}
    if config.data.num_classes:
        experiment.make_model(config)
        plan = experiment.plan(config, 1_000)
        experiment.make_optimizer(config, plan)


# What is no value of a key, or is one that no run could have.
ODD = (
    '', '-1', '0', '1', '0.5', '-0.0', 'nan', 'inf', '-inf', '1e999', '1e308', '1e-320', '9' * 30,
    '9' * 5_000, '1_000', ' 7 ', '٣', 'True', 'false', 'None', '()', '(', '(' * 3_000, '-' * 9_000 + '1',
    '[' * 200 + ']' * 200, '(1,)', '(0,0,0)', '(-1,-1)', '(1,2,3)', '1,1,1', '(10**9,)',
    '1000000000,1000000000', '(1.5, 2)', "('a', 'b')", '{}', '{1: 2}', 'lambda: 0', '__import__("os")',
    '9**9**9**9', "'a'*10**10", '1if 1else 2', '0x', '1e5', 'float32', 'spatio_temporal', 'auto', '../../x',
    '/etc/passwd', 'x\0y', 'a\nb', '\x1b[31m', 'a' * 5_000, 'gs://b/x', '1000000000', '4294967296',
    '2147483648',
)  # fmt: skip
TEXTS = st.one_of(
    st.sampled_from(ODD), st.sampled_from(ODD), hostile.TEXT, st.integers().map(str), st.floats().map(str)
)


def test_hostile_options(folder):
    """Every key with every odd value at least once, and drawn ones together."""
    settled(DIGITS, SETTINGS)

    @hostile.fuzz(400)
    @given(
        st.dictionaries(st.one_of(*[st.sampled_from(KEYS)] * 8, hostile.TEXT), TEXTS, min_size=1, max_size=2)
    )
    def attempt(drawn):
        hostile.survive(lambda: settled(DIGITS, SETTINGS | drawn), folder=folder)

    attempt()


@pytest.mark.parametrize(
    'text', ['nan', '-1', '1e999', '9' * 30, '../../x', 'x\0y', '(' * 3_000, '1000000000']
)
def test_every_key_with_hostile_values(folder, text):
    for key in KEYS:
        hostile.survive(lambda key=key: settled(DIGITS, SETTINGS | {key: text}), folder=folder)


def test_hostile_arguments_of_config_files(folder):
    @hostile.fuzz(120)
    @given(
        st.sampled_from(CONFIGS),
        st.one_of(TEXTS, st.sampled_from(['B/16x2', 'L/0x1', 'B/999999x9', 'organ/28'])),
    )
    def attempt(path, argument):
        spec = f'{path}:{argument}'
        hostile.survive(lambda: settled(spec, {'data.root': str(folder)}), folder=folder)

    attempt()


def test_hostile_json(folder):
    path = folder / 'config.json'
    valid = load(DIGITS, SETTINGS).to_dict()
    path.write_text(json.dumps(valid))
    settled(str(path), {})

    @hostile.fuzz(250)
    @given(hostile.json_files(valid))
    def attempt(content):
        path.write_bytes(content)
        outcome = hostile.survive(lambda: load(str(path)), path, 'config.', folder=folder)
        if not outcome.refused:
            hostile.survive(lambda: settled(str(path), {}), folder=folder)

    attempt()


PROGRAMS = (
    '', 'get_config', 'def get_config():', 'def get_config(): return 3',
    'def get_config(): return get_config()', 'raise SystemExit', 'raise SystemExit(3)',
    'def get_config(): raise SystemExit("bye")', 'def get_config(): raise ValueError', 'get_config = 3',
    'def get_config(): raise ValueError("one\\ntwo")', 'def get_config(): return int("x")',
    'def get_config(): raise KeyError("x" * 10**5)', 'import nothing_of_that_name', 'x = ' + '(' * 300,
    '\0', 'é = 1', 'def get_config(): assert False',
    'from ml_collections import ConfigDict\nget_config = ConfigDict', 'class get_config(dict): pass',
    'def get_config(a, b): pass',
    'from vivit_jax.config import default_config as get_config\nget_config().model = 3',
)  # fmt: skip
# And what can be done to a configuration in one.
DEEDS = ('c.model = 3', 'del c.model', 'c.update(name="../x")', 'c.data.root = 3')
PROGRAMS += tuple(
    'from vivit_jax.config import default_config\n'
    f'def get_config():\n c = default_config()\n c.unlock()\n {deed}\n return c\n'
    for deed in DEEDS
)


def test_config_files_that_are_none(folder):
    path = folder / 'experiment.py'
    for program in (
        *(text.encode() for text in PROGRAMS),
        b'\xff\xfe',
        b'\xef\xbb\xbfx',
        b'# coding: nothing\n',
    ):
        path.write_bytes(program)
        for spec in (str(path), f'{path}:argument'):
            outcome = hostile.survive(
                lambda spec=spec: settled(spec, {'model.width': '16'}), path, 'config.', folder=folder
            )
            assert outcome.refused, program
    for spec in (
        '',
        ':',
        '.',
        '..',
        '/',
        '\0',
        'x' * 300,
        'x' * 5_000,
        str(folder),
        f'{folder}/experiment.txt',
        'a\nb',
    ):
        assert hostile.survive(lambda spec=spec: load(spec), folder=folder).refused, spec


def test_no_command_line_ends_in_a_trace(folder, capsys):
    """What the command prints of a mistake is one line without what a terminal takes for a command."""
    for options in (
        ['--config.name=\x1b[31mred'],
        ['--config.data.root=\udcff\x1b]0;title\x07'],
        ['--config.model.width=\n\n'],
        ['--workdir=\0'],
        ['--workdir=' + 'x' * 300],
        ['--config.training.batch_size=' + '9' * 400],
    ):
        code = main.main([f'--config={DIGITS}', '--mode=eval', *options])
        told = capsys.readouterr().err
        assert code == 2
        assert told.count('\n') == 1
        assert told.removesuffix('\n').isprintable()
