"""Tables, lists and names of classes that are broken or hostile: read, or refused naming the file and the line."""

import csv
import functools
import io
import json
import pathlib
import shutil

import hostile
import hypothesis
import pytest
from hypothesis import strategies as st

from vivit_jax.data import frame_folders, video_files
from vivit_jax.data.examine import Examination
from vivit_jax.data.given import open_given
from vivit_jax.data.listing import Layout, list_examples
from vivit_jax.data.listing.annotations import Disk, understand
from vivit_jax.data.listing.tables import LONGEST, MOST_COLUMNS, read_table
from vivit_jax.data.record import Found

ENDINGS = ('.mp4', '.avi')
ROWS = 'path,label,split,start,end,person\na.mp4,run,train,0,1.5,x\nb.mp4,walk,train,,,y\nc.mp4,run,val,1:02,,x\n'
VALID = {
    'own.csv': ROWS,
    'semicolons.csv': ROWS.replace(',', ';'),
    'tabs.tsv': ROWS.replace(',', '\t'),
    'quoted.csv': 'path,label\n"a.mp4","run, or\twalk"\n"b ""c"".mp4",walk\n',
    'list.txt': 'a.mp4 0\nsome folder/b.mp4 1\n/absolute/c.mp4 1\n',
    'counted.csv': 'a.mp4,run,3,4\nb.mp4,walk,2,1\n',
    'objects.jsonl': '{"path": "a.mp4", "label": "run"}\n{"path": "b.mp4", "label": ["walk"]}\n',
    'list.json': '[{"path": "a.mp4", "label": 0, "start_frame": 3}, {"path": "b.mp4", "label": 1, "stop_frame": 9}]',
    'kinetics.csv': 'label,youtube_id,time_start,time_end,split\nrun,abcdefghijk,0,10,train\n'
    'walk,bbbbbbbbbbb,3,13,train\n',
    'epic.csv': 'video_id,start_timestamp,stop_timestamp,start_frame,stop_frame,label_class\n'
    'P01_01,00:00:00.14,00:00:03.37,8,202,3\nP01_02,00:01:00,00:01:03,90,95,1\n',
    'ssv2.json': '[{"id": "1", "label": "a", "template": "Put [x] down"}, {"id": "2", "template": "Lift [x]"}]',
}
CELLS = st.one_of(
    hostile.TEXT,
    hostile.NUMBERS.map(str),
    st.sampled_from(
        ['a.mp4', 'run', 'train', 'val', '0', '1', '1.5', '00:00:03', '-1', '1e999', '9' * 5_000, 'a|b', '"']
    ),
)


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    """A folder with files of the names that the tables have, and nothing beside it."""
    folder = tmp_path_factory.mktemp('tables') / 'root'
    folder.mkdir()
    for name in ('a.mp4', 'b.mp4', 'c.mp4', 'abcdefghijk_000000_000010.mp4', 'P01_01.mp4', '1.mp4', '2.mp4'):
        (folder / name).write_bytes(b'x')
    return folder


def use(root, name, content, heads=('label',), several=False):
    """Lists what a table tells, of each split and as named on a command line."""
    file = root / name
    file.write_bytes(content)

    def listed(split):
        group = 'person' if b'person' in content[:80] else ''
        layout = Layout(root=str(root), csv=str(file), heads=heads, several_labels=several, group=group)
        listing = list_examples(split, layout=layout, endings=ENDINGS)
        assert len(listing.class_names) == sum(listing.head_sizes)
        json.dumps(listing.class_names).encode()
        '\n'.join(listing.class_names).encode()
        for entry in listing.entries:
            assert entry.path
            assert '\0' not in entry.path
            assert entry.path.encode()
            assert 0 <= entry.start < entry.end
            assert entry.first >= 0
            assert entry.stop is None or entry.first < entry.stop
            assert entry.where.startswith(name)
        for where, cause in listing.bad:
            assert where.startswith(name), where
            _one_line(cause)
        return listing

    def given():
        found = open_given([str(file)], kinds=(_KIND, frame_folders.KIND), examination=Examination())
        for where, cause in found.bad:
            assert where
            _one_line(cause)
        return found

    outcomes = [
        hostile.survive(functools.partial(listed, split), name, folder=root)
        for split in ('train', 'validation')
    ]
    outcomes.append(hostile.survive(given, name, folder=root))
    return outcomes


def _one_line(cause):
    assert cause.strip()
    assert '\n' not in cause
    assert len(cause) <= hostile.LONGEST


def _probe(path, *, seconds=0.0):
    return Found(num_frames=50, frame_size=(4, 4), seconds=2.0, codec='none')


_KIND = video_files.KIND.__class__(
    name='names',
    endings=ENDINGS,
    probe=_probe,
    read=lambda *_: None,
    times=lambda found: [k / 25 for k in range(50)],
)


@pytest.mark.parametrize('name', VALID)
def test_broken_bytes(root, name):
    others = [text.encode() for text in VALID.values()]
    refused = []

    @hostile.fuzz(60)
    @hypothesis.given(hostile.broken(VALID[name].encode(), *others))
    def one(content):
        refused.append(all(outcome.refused for outcome in use(root, name, content)))

    assert not use(root, name, VALID[name].encode())[0].refused
    one()
    assert 0 < sum(refused) < len(refused)


@pytest.mark.parametrize('name', ['list.json', 'ssv2.json', 'objects.jsonl'])
def test_json_of_other_kinds(root, name):
    text = VALID[name]
    rows = [json.loads(line) for line in text.splitlines()] if name == 'objects.jsonl' else json.loads(text)
    drawn = hostile.json_files(rows)
    if name == 'objects.jsonl':
        spoilt = hostile.spoilt(rows).map(lambda found: found if isinstance(found, list) else [found])
        drawn = st.one_of(drawn, spoilt.map(lambda found: b'\n'.join(map(hostile.json_bytes, found))))

    @hostile.fuzz(120)
    @hypothesis.given(drawn, st.booleans())
    def one(content, several):
        use(root, name, content, several=several)

    one()


@hostile.fuzz(250)
@hypothesis.given(
    st.permutations(['path', 'label', 'split', 'start', 'end', 'start_frame', 'stop_frame', 'person']),
    st.integers(2, 8),
    st.lists(st.lists(CELLS, min_size=8, max_size=8), min_size=1, max_size=5),
    st.sampled_from([',', '\t', ';']),
    st.sampled_from(['utf-8', 'utf-8-sig', 'utf-16', 'latin-1']),
    st.booleans(),
)
def test_hostile_cells(root, columns, width, rows, delimiter, encoding, several):
    text = io.StringIO()
    writer = csv.writer(text, delimiter=delimiter)
    columns = list(dict.fromkeys(['path', *columns[:width]]))
    writer.writerow(columns)
    writer.writerow(['a.mp4', *['1'] * (len(columns) - 1)])
    writer.writerows(row[: len(columns)] for row in rows)
    use(
        root,
        'cells.csv',
        text.getvalue().encode(encoding, 'surrogatepass' if 'utf' in encoding else 'replace'),
        several=several,
    )


NAMES = {
    'classes.txt': ('own.csv', 'run\nwalk\n'),
    'something-something-v2-labels.json': ('ssv2.json', '{"Put x down": "0", "Lift x": "1"}'),
    'EPIC_100_label_classes.csv': ('epic.csv', 'id,key,instances\n0,take,x\n1,put,y\n2,cut,\n3,wash,z\n'),
    'moments_categories.txt': ('counted.csv', 'run,0\nwalk,1\n'),
}


@pytest.mark.parametrize('name', NAMES)
def test_names_of_classes(root, name):
    table, valid = NAMES[name]
    parts = [valid.encode(), *(text.encode() for _, text in NAMES.values())]
    drawn = hostile.broken(*parts)
    if name.endswith('.json'):
        drawn = st.one_of(drawn, hostile.json_files(json.loads(valid)))

    @hostile.fuzz(80)
    @hypothesis.given(drawn)
    def one(content):
        (root / name).write_bytes(content)
        (root / table).write_text(VALID[table])
        disk = Disk(root=root, endings=ENDINGS, folders=False)

        def read():
            rows = read_table(root / table, heads=('label',), endings=ENDINGS)
            told = understand(rows, split='', heads=('label',), group='', disk=disk)
            ((names, _),) = told.names
            assert all(names)
            assert len(set(names)) == len(names)
            '\n'.join(names).encode()

        hostile.survive(read, name, table, folder=root)

    try:
        one()
    finally:
        (root / name).unlink()


@pytest.mark.parametrize(
    ('name', 'content', 'words'),
    [
        (
            'a.csv',
            ','.join(['path', 'label', *map(str, range(10**6))]) + '\na.mp4,1\n',
            'field larger than field limit',
        ),
        ('a.csv', 'path,label\n' + 'x' * 200_000 + ',1\n', 'field larger than field limit'),
        ('a.csv', 'x' * 200_000 + ',1\n', 'field larger than field limit'),
        ('a.csv', 'path,label' + ',x' * MOST_COLUMNS + '\na.mp4,1\n', f'more than {MOST_COLUMNS:,}'),
        ('a.csv', f'path,label\na.mp4,run\n{"y" * (LONGEST + 1)}.mp4,run\n', None),
        ('a.csv', 'path,label\na.mp4,run\nb\0.mp4,run\n', None),
        ('a.csv', 'path,label,start\na.mp4,run,' + '1' * 9_000 + 'x\n', 'must be seconds'),
        (
            'a.jsonl',
            '\n'.join(json.dumps({'path': 'a.mp4', 'label': 1, f'k{n}': n}) for n in range(10**4)),
            'columns',
        ),
        ('a.jsonl', '{"path": "a.mp4", "label": ' + '[' * 90_000 + ']' * 90_000 + '}\n', 'is not JSON'),
        ('a.jsonl', '{"path": "a\\ud800.mp4", "label": 1}\n', 'half a letter'),
        ('a.json', '[{"path": "a.mp4", "label": "\\udcff"}]', 'half a letter'),
        ('a.json', '[' * 10**6, 'is not JSON'),
        ('a.json', '[{"path": "a.mp4", "label": ' + '9' * 5_000 + '}]', 'is not JSON'),
    ],
)
def test_tables_that_swell(root, name, content, words):
    outcomes = use(root, name, content.encode())
    if words is None:
        assert not outcomes[0].refused
        ((where, cause),) = outcomes[0].value.bad
        assert where == f'{name}, line 3'
        assert 'a value of 10,005 letters' in cause or 'holds a NUL' in cause
    else:
        assert words in str(outcomes[0].error)


def test_a_pipe_is_no_table(root):
    import os

    os.mkfifo(root / 'pipe.csv')
    outcome = hostile.survive(
        lambda: open_given([str(root / 'pipe.csv')], kinds=(_KIND,), examination=Examination()), 'pipe.csv'
    )
    assert 'it is no regular file' in str(outcome.error)


@pytest.fixture(autouse=True)
def _clean(root):
    """Leaves no table behind."""
    before = set(root.iterdir())
    yield
    for path in set(root.iterdir()) - before:
        shutil.rmtree(path) if path.is_dir() else pathlib.Path(path).unlink()
