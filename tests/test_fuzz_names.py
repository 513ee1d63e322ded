"""Names of files and classes: whatever they are, they are listed, written, shown, escaped, and lead nowhere else."""

import csv
import html
import io
import json
import os
import pathlib
import re

import hostile
import hypothesis
import numpy as np
import pytest
import rich.console
from conftest import load_tool
from hypothesis import strategies as st

from vivit_jax import results
from vivit_jax.data.bad_files import BadFiles
from vivit_jax.data.examine import Examination
from vivit_jax.data.listed import Kind, ListedFiles
from vivit_jax.data.listing import Layout
from vivit_jax.data.record import Found, UnreadableExample
from vivit_jax.predict.files import FeatureWriter, Row, RowWriter
from vivit_jax.predict.terminal import Printed, show
from vivit_jax.report import markup
from vivit_jax.telling.printable import printable, warning_line
from vivit_jax.telling.terminal import Terminal

prepare_videos = load_tool('prepare_videos')

# As a file system of Linux has them: all bytes but two.
STRANGE = (
    b'\x1b[2J\x1b]0;owned\x07', b'a\nb', b'a\r\nb', b'<script>alert(1)</script>', b'"><img src=x onerror=alert(1)>',
    b'\xff\xfe\xe9', b'\xed\xa0\x80', b'-rf', b'--config=x', b'$(reboot)', b'`id`', b'%s%n', b'a,b;c\td', b'=cmd|x',
    '\u202egnp'.encode(), '\N{CLAPPER BOARD} 日本'.encode(), b'..\\x', b'~', b'#t=1,2', b'x' * 251, b'"', b"'", b' ',
    b'.x', '\u2028'.encode(), b'&lt;', b'{0}', b'\x7f', '\x9b31m'.encode(), b'%d', b'concat:a|b', b'http:x',
)  # fmt: skip
LETTERS = st.characters(exclude_characters='/\0', exclude_categories=['Cs'])
BYTES = st.one_of(
    st.sampled_from(STRANGE),
    st.binary(min_size=1, max_size=40).map(lambda name: name.replace(b'/', b'_').replace(b'\0', b'_')),
    st.text(LETTERS, min_size=1, max_size=40).map(str.encode),
)
NAMES = BYTES.map(os.fsdecode)


def clean(shown):
    """Asserts that what is shown holds no command for a terminal."""
    assert all(map(str.isprintable, shown.split('\n'))), ascii(shown)


def probe(path, *, seconds=0.0):
    """Half of the files are good."""
    if os.path.getsize(path) % 2:
        return 'is odd'
    return Found(num_frames=9, frame_size=(4, 4), seconds=1.0, codec='none')


def read(path, found, indices, *, seconds=0.0):
    raise UnreadableExample(f'{path} cannot be read: it is even')


KIND = Kind(name='names', endings=('.mp4',), probe=probe, read=read)


@pytest.fixture
def place(tmp_path):
    """Makes an empty folder, again and again."""
    places = (tmp_path / str(number) / 'inside' for number in range(10**6))

    def make():
        folder = next(places)
        folder.mkdir(parents=True)
        return folder

    return make


def test_names_of_files(place):
    @hostile.fuzz(120)
    @hypothesis.given(st.lists(BYTES, min_size=1, max_size=5))
    def one(names):
        root = place()
        written = set()
        for number, name in enumerate(dict.fromkeys(names)):
            folder = root / 'videos' / 'ab'[number % 2]
            folder.mkdir(parents=True, exist_ok=True)
            path = os.fsencode(folder) + b'/' + name[:251] + b'.mp4'
            pathlib.Path(os.fsdecode(path)).write_bytes(b'x' * number)
            written.add(f'{"ab"[number % 2]}/{os.fsdecode(name[:251])}.mp4')
        (root / 'videos' / 'b').mkdir(exist_ok=True)
        (root / 'videos' / 'b' / 'good.mp4').write_bytes(b'')
        hostile.survive(lambda: listed(root, written | {'b/good.mp4'}), folder=root)

    def listed(root, written):
        layout = Layout(root=str(root / 'videos'))
        examination = Examination(cache=root / 'cache', threads=2)
        bad_files = BadFiles(root / 'bad_files.csv')
        found = set()
        for split in ('train', 'validation'):
            try:
                source = ListedFiles(split, kind=KIND, layout=layout, examination=examination)
            except ValueError as error:
                hostile.judge(error, root)  # no class has two examples, or one class is empty
                return
            found |= {source[index].name for index in range(len(source))}
            found |= {name for name, _ in source.bad}
            unreadable = []
            for index in range(len(source)):
                record = source[index]
                with pytest.raises(UnreadableExample) as caught:
                    record.read(np.arange(2))
                unreadable.append((record.name, str(caught.value)))
            told = [*source.bad, *unreadable]
            for _ in range(2):  # the second time they are there already
                bad_files.add(split, 'at the start', told)
                assert len(bad_files.read()) == len({name for name, _ in told}) + sum(
                    of != split for of, _ in bad_files.read()
                )
        hidden = {name for name in written if name.rpartition('/')[2].startswith('.')}
        assert {backslashed(name) for name in written - hidden} == {backslashed(name) for name in found}

    one()


def backslashed(name):
    """How a name is told that is no UTF-8."""
    return os.fsencode(name).decode('utf-8', 'backslashreplace')


def test_bad_files_keep_their_names(place):
    @hostile.fuzz(150)
    @hypothesis.given(st.dictionaries(NAMES, st.one_of(NAMES, hostile.TEXT), min_size=1, max_size=5))
    def one(causes):
        causes = {name: cause for name, cause in causes.items() if _is_bytes(cause)}
        bad_files = BadFiles(place() / 'bad_files.csv')
        for _ in range(3):
            bad_files.add('train', 'at the start', causes.items())
        again = BadFiles(bad_files.path)
        assert {name: cause for (_, name), (cause, _) in again.read().items()} == {
            name: ' '.join(cause.split()) for name, cause in causes.items()
        }
        with bad_files.path.open(newline='', encoding='utf-8', errors='surrogateescape') as file:
            assert len(list(csv.reader(file))) == (len(causes) + 1 if causes else 1)

    one()


def _is_bytes(text):
    return not any('\ud800' <= letter <= '\udc7f' or '\udd00' <= letter <= '\udfff' for letter in text)


def test_predictions_keep_their_names(place):
    @hostile.fuzz(150)
    @hypothesis.given(st.lists(st.tuples(NAMES, NAMES), min_size=1, max_size=4))
    def one(pairs):
        folder = place()
        rows = [
            Row(name=name, top={'label': [(label, 0.5)]}, file=f'/x/{name}', truth=label)
            for name, label in pairs
        ]
        for form in ('csv', 'json', 'jsonl'):
            path = folder / f'predictions.{form}'
            with path.open('w', encoding='utf-8', errors='surrogateescape', newline='') as file:
                writer = RowWriter(file, form, heads=['label'], top=1, truth=True)
                for row in rows:
                    writer.write(row)
                writer.end()
            with path.open(encoding='utf-8', errors='surrogateescape', newline='') as file:
                if form == 'csv':
                    told = [(row['name'], row['class_1']) for row in csv.DictReader(file)]
                else:
                    objects = json.load(file) if form == 'json' else [json.loads(line) for line in file]
                    told = [(each['name'], each['top']['label'][0]['class']) for each in objects]
            assert told == pairs, form
        features = FeatureWriter(folder / 'features.npz')
        for name, _ in pairs:
            features.write(name, None, np.zeros(3, np.float32))
        features.end()
        with np.load(folder / 'features.npz', allow_pickle=False) as arrays:
            # NumPy leaves out zeros at the end of a text; names of files have none.
            assert arrays['names'].tolist() == [name for name, _ in pairs]
        results.write_csv(folder / 'table.csv', ['name', 'label'], [list(pair) for pair in pairs])
        with (folder / 'table.csv').open(encoding='utf-8', errors='surrogateescape', newline='') as file:
            assert [tuple(row) for row in csv.reader(file)][1:] == pairs

    one()


@hostile.fuzz(150)
@hypothesis.given(st.one_of(NAMES, hostile.TEXT), st.one_of(NAMES, hostile.TEXT))
def test_terminals_take_no_commands(name, label):
    clean(printable(name))
    assert '\n' not in printable(name)
    clean(warning_line(f'{name} is {label}'))
    shown = io.StringIO()
    console = rich.console.Console(
        file=shown,
        force_terminal=True,
        color_system=None,
        width=10**6,
        markup=False,
        emoji=False,
        highlight=False,
    )
    show(Row(name=name, top={'label': [(label, 0.5)]}, truth=label), console, [label])
    clean(shown.getvalue())
    screen = io.StringIO()
    Printed(screen).write(f'{name},{label}\n')
    clean(screen.getvalue())
    terminal = Terminal()
    said = io.StringIO()
    terminal._console = rich.console.Console(
        file=said,
        color_system=None,
        width=300,
        force_terminal=True,
        highlight=False,
        soft_wrap=True,
        emoji=False,
    )
    terminal.say(f'gone bad: {name} ({label})')
    terminal.say(f'run {name}', is_command=True)
    terminal.table({'train': {label: 0.5}})
    clean(said.getvalue())


@hostile.fuzz(150)
@hypothesis.given(st.one_of(NAMES, hostile.TEXT), st.one_of(NAMES, hostile.TEXT))
def test_pages_show_names_as_they_are(name, cause):
    page = markup.table(['example', 'split', 'cause'], [[name, 'train', cause]], sortable=True).markup
    cells = re.findall(r'<t[hd]\b[^>]*>(.*?)</t[hd]>', page, re.DOTALL)
    assert [html.unescape(cell) for cell in cells[3::2]] == [
        markup.UNPRINTABLE.sub('\N{REPLACEMENT CHARACTER}', text) for text in (name, cause)
    ]
    assert '<script' not in page.lower()
    assert '<img' not in page.lower()


# --- nothing is written elsewhere


@pytest.mark.parametrize(
    'split', ['../x', '/tmp/x', 'a/b', 'a\nb', 'a\0b', '-rf', '', '.', '..', 'x\x1b', 'a\\b', '~']
)
def test_prepared_splits_are_plain_names(tmp_path, split):
    class Source:
        def __len__(self):
            return 3

        def __getitem__(self, index):
            raise AssertionError('not opened')

    settings = prepare_videos.Settings()
    outcome = hostile.survive(
        lambda: prepare_videos._jobs(split, Source(), tmp_path, settings, 0), 'cannot be part of a file name'
    )
    assert outcome.refused


def test_a_class_folder_that_is_no_utf8(tmp_path):
    root = tmp_path / 'root'
    for name in (b'good', b'caf\xe9'):
        folder = os.path.join(os.fsencode(root), name)
        os.makedirs(folder)
        for video in (b'a.mp4', b'b.mp4'):
            pathlib.Path(os.fsdecode(os.path.join(folder, video))).write_bytes(b'')
    outcome = hostile.survive(
        lambda: ListedFiles('train', kind=KIND, layout=Layout(root=str(root)), examination=Examination()),
        root,
    )
    assert r"'caf\udce9' is not UTF-8: rename it" in str(outcome.error)


def test_a_data_folder_that_is_no_utf8(tmp_path):
    root = pathlib.Path(os.fsdecode(os.fsencode(tmp_path) + b'/caf\xe9'))
    for name in ('a', 'b'):
        (root / name).mkdir(parents=True)
        for video in ('1.mp4', '2.mp4'):
            (root / name / video).write_bytes(b'')
    examination = Examination(cache=tmp_path / 'cache')
    source = ListedFiles('train', kind=KIND, layout=Layout(root=str(root)), examination=examination)
    assert len(source) == 2
    assert list((tmp_path / 'cache').iterdir())
