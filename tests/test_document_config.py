"""docs/config.md: up to date, every key with its default and meaning, choices as the code knows them."""

import re
import types

import pytest
from conftest import load_tool

from vivit_jax.config import default_config, flatten
from vivit_jax.models.patterns import ATTENTIONS


@pytest.fixture(scope='module')
def tool():
    return load_tool('document_config')


def test_the_page_is_up_to_date(tool, capsys):
    assert tool.main(['--check']) == 0, capsys.readouterr().err


def test_an_older_page_is_told_and_written_anew(tool, tmp_path, monkeypatch, capsys):
    page = tmp_path / 'config.md'
    page.write_text(tool.DOCUMENT.read_text().replace('`768`', '`512`'))
    monkeypatch.setattr(tool, 'DOCUMENT', page)
    assert tool.main(['--check']) == 1
    assert 'out of date: run python tools/document_config.py' in capsys.readouterr().err
    assert tool.main([]) == tool.main(['--check']) == 0


def test_every_key_has_its_row_with_its_default(tool):
    rows = re.findall(
        r'^\| <a id="([\w.]+)"></a>`(\w+)`\*? \| (.+?) \| (.+?) \| (.+) \|$', tool.page(), re.MULTILINE
    )
    values = flatten(default_config())
    assert {key for key, *_ in rows} == set(values)
    assert len(rows) == len(values)
    for key, last, default, kind, meaning in rows:
        assert key.rpartition('.')[2] == last
        assert kind
        assert meaning
        if isinstance(values[key], str):
            assert default.strip('`') == (values[key] or "''")
            # A default is one of the choices, where there are some.
            choices = re.findall(r'`(\w+)`(?: \([^)]*\))?(?=,|;|:|$)', meaning)
            if len(choices) > 1:
                assert values[key] in choices, key


def test_attentions_are_those_of_the_models(tool):
    meaning = tool.read_keys()['model.attention'].meaning
    assert set(re.findall(r'\w+', meaning.partition('docs/')[0])) >= set(ATTENTIONS)


SOURCE = """
def default_config():
    config = ConfigDict()
    config.name = 'x'  # beside
    # above,
    # in two lines
    config.seed = 0
    config.group = _group()
    return config


def _group():
    group = ConfigDict()
    group.long = (
        1  # inside
    )
    # remark on those that follow
    group.inner = ConfigDict()
    # a remark
    group.inner.key = 'a'  # a | b (odd)
    _more(group)
    return group


def _more(group):
    group.more = ''  # see docs/data.md; '': runs/NAME_x
"""


def test_where_comments_may_stand(tool, tmp_path):
    path = tmp_path / 'settings.py'
    path.write_text(SOURCE)
    module = types.ModuleType('settings')
    module.__file__ = str(path)
    keys = tool.read_keys([module])
    assert {name: (key.meaning, key.remark) for name, key in keys.items()} == {
        'name': ('beside', ''),
        'seed': ('above, in two lines', ''),
        'group.long': ('inside', ''),
        'group.inner.key': ('a | b (odd)', 'a remark'),
        'group.more': ("see docs/data.md; '': runs/NAME_x", ''),
    }
    path.write_text(SOURCE.replace('  # beside', ''))
    with pytest.raises(ValueError, match=r'^config\.name has no comment beside or above it$'):
        tool.read_keys([module])


@pytest.mark.parametrize(
    ('comment', 'cell'),
    [
        ('a | b (odd) | c_d', '`a`, `b` (odd), `c_d`'),
        ('what (all): one | two; else', 'what (all): `one`, `two`; else'),
        ("see docs/data.md; '': runs/NAME", "see [data.md](data.md); `''`: `runs/NAME`"),
        ('of model.py, as a/*,b*', 'of `model.py`, as `a/*,b*`'),
        ('rate * this / that (1 + s)', 'rate * this / that (1 + s)'),
    ],
)
def test_comments_become_markdown(tool, comment, cell):
    assert tool._meaning(comment) == cell
