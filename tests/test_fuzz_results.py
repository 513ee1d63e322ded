"""What a run left, made hostile: its report is whole and all is escaped in it, or it is refused in one clear line."""

import csv
import html.parser
import io
import json
import pathlib
import re
import shutil

import hostile
import numpy as np
import pytest
import workdirs
from hypothesis import given
from hypothesis import strategies as st

from vivit_jax.report import charts, intervals, numbers
from vivit_jax.report.compose import compose
from vivit_jax.report.markup import Html, text
from vivit_jax.report.reading import read_runs

pytestmark = pytest.mark.filterwarnings('ignore::hypothesis.errors.HypothesisWarning')  # of long values
KINDS = {
    'one head': {},
    'two heads': {'sizes': (3, 2), 'heads': ('noun', 'verb')},
    'several labels': {'loss': 'sigmoid'},
}
# All that a report is made of: whatever else a page had would have come from a file.
ELEMENTS = (
    'html', 'head', 'meta', 'title', 'style', 'body', 'header', 'h1', 'h2', 'h3', 'h4', 'p', 'code', 'div',
    'dl', 'dt', 'dd', 'nav', 'ol', 'ul', 'li', 'a', 'main', 'section', 'table', 'thead', 'tbody', 'tr',
    'th', 'td', 'button', 'span', 'b', 'strong', 'small', 'details', 'summary', 'figure', 'figcaption',
    'img', 'svg', 'g', 'path', 'defs', 'clippath', 'rect', 'line', 'circle', 'text', 'use', 'footer',
    'script', 'tspan', 'style', 'lineargradient', 'stop',
)  # fmt: skip
ATTRIBUTES = (
    'lang', 'charset', 'http-equiv', 'content', 'name', 'class', 'id', 'type', 'aria-label',
    'aria-labelledby', 'aria-hidden', 'href', 'scope', 'data-value', 'tabindex', 'title', 'viewbox', 'role',
    'x1', 'y1', 'x2', 'y2', 'x', 'y', 'cx', 'cy', 'r', 'd', 'transform', 'width', 'height', 'clip-path',
    'xlink:href', 'stroke-dasharray', 'alt', 'src', 'xmlns', 'xmlns:xlink', 'version',
    'preserveaspectratio',
)  # fmt: skip


@pytest.fixture(autouse=True)
def _as_users_see_it(unchecked):
    """Without the check of array types, which takes longest, and would object first."""


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """A folder of its own for the cases of a test, with nothing that may be read beside it."""
    return tmp_path_factory.mktemp('cases') / 'inside'


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
    """Workdirs of runs that never were, by kind."""
    folders = {}
    for kind, values in KINDS.items():
        folders[kind] = tmp_path_factory.mktemp('finished') / 'run'
        workdirs.write_workdir(folders[kind], examples=12, names=[f'{n}.mp4' for n in range(12)], **values)
        (folders[kind] / 'bad_files.csv').write_text('test,a.mp4,cut off,start\n')
        account = {
            'summary': 'scenic x: of 2 parameter arrays 2 copied',
            'notes': ['a note'],
            'parameters': {'cls': {'action': 'copied', 'note': '', 'shape': [1], 'arrays': {'cls': [1]}}},
            'unused': {'rng': {'shape': [2], 'reason': 'random numbers'}},
        }
        (folders[kind] / 'conversion.json').write_text(json.dumps(account))
        if kind == 'several labels':
            random = np.random.default_rng(0)
            arrays = {
                'scores': random.normal(size=(12, 4)).astype(np.float32),
                'targets': np.eye(12, 4, dtype=np.float32),
            }
            np.savez(folders[kind] / 'scores_test.npz', **arrays)
    return folders


@pytest.fixture
def quick(monkeypatch):
    """Leaves out what takes longest and reads nothing: matplotlib's drawing, all but a few draws of the bootstrap."""
    for name in ('lines', 'reliability'):

        def drawn(data, *, title, **options):
            return Html(f'<svg class="chart" role="img" viewBox="0 0 1 1"><title>{text(title)}</title></svg>')

        monkeypatch.setattr(charts, name, drawn)
    monkeypatch.setattr(numbers, 'DRAWS', 3)
    monkeypatch.setattr(intervals, 'FEWEST_DRAWS', 2)


class Page(html.parser.HTMLParser):
    """Reads a page as a browser does, and notes what is in it that no report has."""

    def __init__(self):
        super().__init__()
        self.wrong, self.scripts, self.open = [], 0, []

    def handle_starttag(self, tag, attributes):
        self.scripts += tag == 'script'
        if tag not in ELEMENTS:
            self.wrong.append(tag)
        for name, value in attributes:
            if name not in ATTRIBUTES and not name.startswith('data-'):
                self.wrong.append(f'{tag} {name}')
            if name in ('href', 'xlink:href') and not value.startswith('#'):
                self.wrong.append(f'{tag} {name}={value}')
            if name == 'src' and not value.startswith('data:image/'):
                self.wrong.append(f'{tag} {name}={value[:80]}')
        if tag not in ('meta', 'img', 'br'):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        self.open.pop()

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.wrong.append(f'/{tag}')

    def handle_comment(self, data):
        self.wrong.append(f'<!--{data[:40]}')

    def handle_decl(self, decl):
        if decl != 'doctype html':
            self.wrong.append(decl)

    def handle_pi(self, data):
        self.wrong.append(data[:40])


def reported(*folders: pathlib.Path) -> str:
    """Composes a report as `report.write` does, and looks at the page."""
    runs = read_runs(folders)
    page = compose(runs, predictor=None, sources={}, with_clips=False)
    page.encode('utf-8')
    found = Page()
    found.feed(page)
    found.close()
    assert found.wrong == []
    assert found.open == []
    assert found.scripts == 1
    assert not re.search('[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]', page)
    assert 'NaN:NaN' not in page
    return page


def attempt(folder: pathlib.Path, name: str, content: bytes) -> hostile.Outcome:
    (folder / name).write_bytes(content)
    return hostile.survive(lambda: reported(folder), folder / name, folder=folder)


def copied(finished, folder, kind):
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(finished[kind], folder)
    return folder


@pytest.mark.parametrize('kind', list(KINDS))
@pytest.mark.parametrize('name', ['eval.json', 'run.json', 'conversion.json', 'config.json'])
def test_hostile_json_of_a_run(folder, finished, quick, kind, name):
    copied(finished, folder, kind)
    valid = (folder / name).read_bytes()
    assert not attempt(folder, name, valid).refused

    @hostile.fuzz(35)
    @given(hostile.json_files(json.loads(valid)))
    def case(content):
        outcome = attempt(folder, name, content)
        assert not outcome.refused or name == 'config.json', outcome.error

    case()


@st.composite
def tables(draw: st.DrawFn, valid: str) -> bytes:
    """Draws a CSV of which some cells are others'."""
    rows = list(csv.reader(io.StringIO(valid)))
    for _ in range(draw(st.integers(1, 4))):
        row = draw(st.sampled_from(rows))
        place = draw(st.integers(0, max(len(row) - 1, 0)))
        kind = draw(st.sampled_from(['cell', 'cell', 'cell', 'more', 'less', 'row']))
        text = draw(
            st.one_of(
                hostile.TEXT,
                st.sampled_from(['nan', 'inf', '-1', '1e999', '9' * 30, '9' * 5_000, '2', '0.5|0.5', '|']),
            )
        )
        if kind == 'cell' and row:
            row[place] = text
        elif kind == 'more':
            row.insert(place, text)
        elif kind == 'less' and row:
            del row[place]
        elif kind == 'row':
            rows.append([draw(hostile.TEXT) for _ in row])
    csv.writer(file := io.StringIO(newline='')).writerows(rows)
    return file.getvalue().encode('utf-8', 'surrogatepass')


@pytest.mark.parametrize('kind', list(KINDS))
@pytest.mark.parametrize('name', ['predictions.csv', 'confusion_test*.csv', 'bad_files.csv'])
def test_hostile_tables_of_a_run(folder, finished, quick, kind, name):
    copied(finished, folder, kind)
    names = sorted(path.name for path in folder.glob(name))
    if kind == 'several labels' and not names:
        return
    valid = (folder / names[0]).read_bytes()

    @hostile.fuzz(30)
    @given(st.one_of(tables(valid.decode()), tables(valid.decode()), hostile.broken(valid)))
    def case(content):
        outcome = attempt(folder, names[0], content)
        assert not outcome.refused, outcome.error

    case()


@pytest.mark.parametrize('kind', list(KINDS))
def test_hostile_logs_of_a_run(folder, finished, quick, kind):
    copied(finished, folder, kind)
    lines = (folder / 'metrics.jsonl').read_bytes().split(b'\n')[:-1]

    @hostile.fuzz(50)
    @given(
        st.lists(
            st.tuples(st.integers(0, len(lines) - 1), hostile.json_files(json.loads(lines[0]))), max_size=3
        )
    )
    def case(drawn):
        found = list(lines)
        for place, content in drawn:
            found[place] = content.replace(b'\n', b' ')
        outcome = attempt(folder, 'metrics.jsonl', b'\n'.join([*found, b'']))
        assert not outcome.refused, outcome.error

    case()


def test_hostile_scores_of_a_run(folder, finished, quick):
    copied(finished, folder, 'several labels')
    valid = (folder / 'scores_test.npz').read_bytes()
    odd = []
    for scores, targets in (
        (np.zeros((0, 4), np.float32), np.zeros((0, 4))),
        (np.zeros((12, 0), np.float32), np.zeros((12, 0))),
        (np.zeros((12, 4), np.float32), np.zeros((4, 12))),
        (np.full((12, 4), np.nan, np.float32), np.zeros((12, 4))),
        (np.zeros(12, np.float32), np.zeros(12)),
        (np.zeros((5, 3), np.float32), np.ones((5, 3))),
        (np.zeros((12, 4), np.complex64), np.zeros((12, 4))),
        (np.zeros((12, 4), '<U3'), np.zeros((12, 4))),
    ):
        np.savez(file := io.BytesIO(), scores=scores, targets=targets)
        odd.append(file.getvalue())

    @hostile.fuzz(40)
    @given(st.one_of(st.sampled_from(odd), hostile.broken(valid, *odd)))
    def case(content):
        assert not attempt(folder, 'scores_test.npz', content).refused

    case()


def test_names_are_escaped_wherever_they_stand(folder, finished, quick):
    """Hostile names as those of classes, examples, splits, metrics, hosts; one run, and two beside each other."""
    for name in hostile.NAMES:
        copied(finished, folder, 'one head')
        rename(folder, name)
        assert not hostile.survive(lambda: reported(folder), folder=folder).refused
    other = folder / 'other'
    shutil.copytree(finished['one head'], other)
    assert not hostile.survive(lambda: reported(folder, other), folder=folder).refused


def rename(folder, name):
    """Gives whatever has a name in a workdir another."""
    old = re.compile(r'label \d|label|\d+\.mp4')
    for file in folder.glob('*.csv'):
        with file.open(newline='') as stream:
            rows = [[old.sub(lambda _: name, cell) for cell in row] for row in csv.reader(stream)]
        csv.writer(text := io.StringIO(newline='')).writerows(rows)
        file.write_bytes(text.getvalue().encode('utf-8', 'surrogatepass'))
    for file in ('eval.json', 'run.json', 'conversion.json'):
        found = json.loads((folder / file).read_text())
        (folder / file).write_text(json.dumps(renamed(found, name)))
    with (folder / 'metrics.jsonl').open('a') as log:
        log.write(json.dumps({'step': 10, 'split': name, 'loss': 1.0, name: 2.0}) + '\n')


def renamed(value, name):
    """Replaces all text of a value of JSON, and adds the name as a key."""
    if isinstance(value, dict):
        return {key: renamed(inner, name) for key, inner in value.items()} | (
            {name: renamed(next(iter(value.values())), name)} if value else {}
        )
    if isinstance(value, list):
        return [renamed(inner, name) for inner in value]
    return name if isinstance(value, str) else value


def test_charts_of_hostile_numbers_and_names(folder, finished):
    """The same with the drawing, which takes a second a page."""
    copied(finished, folder, 'two heads')
    reported(folder)  # matplotlib writes a list of typefaces when it is first asked for one
    odd = [0.0, -1.0, 1e-320, 1e99, float('nan'), float('inf'), -float('inf'), 1, 10**18]
    rows = [
        {
            'step': 2**53 - place,
            'split': split,
            **dict.fromkeys(('loss', 'grad_norm', 'learning_rate', 'data_wait'), number),
        }
        for place, number in enumerate(odd)
        for split in ('train', '</svg><script>', "' onload='", '$x^2$', '\\frac{', '\ud800')
    ]
    (folder / 'metrics.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))
    assert not hostile.survive(lambda: reported(folder), folder=folder, mebibytes=1_000, seconds=30).refused
