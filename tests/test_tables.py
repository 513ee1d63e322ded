"""Tables of every form, read into rows that know their line."""

import json

import pytest

from vivit_jax.data.listing.tables import read_table

ENDINGS = ('.avi', '.mp4')


@pytest.fixture
def read(tmp_path):
    def write_and_read(content, name='train.csv', heads=('label',), folders=False):
        file = tmp_path / name
        file.write_bytes(content.encode() if isinstance(content, str) else content)
        return read_table(file, heads=heads, endings=() if folders else ENDINGS, folders=folders)

    return write_and_read


HEADED = 'path,label\na.mp4,run\nb c.mp4,"run, fast"\n'
ROWS = [(2, ['a.mp4', 'run']), (3, ['b c.mp4', 'run, fast'])]


@pytest.mark.parametrize(
    'content',
    [
        HEADED,
        HEADED.rstrip(),
        '\ufeff' + HEADED,
        HEADED.replace('\n', '\r\n'),
        HEADED.replace('\n', '\r'),
        HEADED.replace('a.mp4,run', ' a.mp4 , run '),
        HEADED.replace('path,label', 'Path, LABEL'),
        HEADED.replace('path,label', '"path","label"'),
        'path\tlabel\na.mp4\trun\nb c.mp4\trun, fast\n',
        'path;label\na.mp4;run\nb c.mp4;run, fast\n',
    ],
)
def test_headers_and_delimiters(read, content):
    table = read(content)
    assert (table.columns, table.rows, table.bad, table.header) == (['path', 'label'], ROWS, [], True)
    assert table.where(3) == 'train.csv, line 3'


@pytest.mark.parametrize('name', ['file', 'Filename', 'file_name', 'video', 'video_path'])
def test_what_the_path_may_be_called(read, name):
    table = read(f'{name},class\nx.mp4,3\n')
    assert (table.columns, table.rows) == ([name.lower(), 'class'], [(2, ['x.mp4', '3'])])


def test_empty_lines_are_counted_and_left_out(read):
    table = read('\n\npath,label\n\na.mp4,1\n , \n,\n\nb.mp4,2\n\n')
    assert table.rows == [(5, ['a.mp4', '1']), (9, ['b.mp4', '2'])]
    assert table.bad == []


def test_quotes(read):
    table = read('path,label,text\na.mp4,"he said ""go"", twice",x\n"b, c.mp4",2,"two\nlines"\nd.mp4,3,y\n')
    assert table.rows == [
        (2, ['a.mp4', 'he said "go", twice', 'x']),
        (3, ['b, c.mp4', '2', 'two\nlines']),
        (5, ['d.mp4', '3', 'y']),
    ]


def test_rows_of_the_wrong_width(read):
    table = read('path,label\na.mp4,1\nb.mp4\nc.mp4,1,\nd.mp4,4\n')
    assert table.rows == [(2, ['a.mp4', '1']), (5, ['d.mp4', '4'])]
    assert table.bad == [
        (3, "1 values, 'b.mp4', instead of 2, path,label"),
        (4, "3 values, 'c.mp4,1,', instead of 2, path,label"),
    ]


def test_a_quote_that_is_not_closed(read):
    table = read('path,label\na.mp4,1\n"b.mp4,2\nc.mp4,3\nd.mp4,4\n')
    assert table.rows == [(2, ['a.mp4', '1'])]
    ((line, cause),) = table.bad
    assert line == 3
    assert cause.endswith('instead of 2, path,label; lines 3 to 5 are one row: a quote is not closed')
    with pytest.raises(ValueError, match=r'train.csv, line 3: field larger .*; is there a quote that is not'):
        read('path,label\na.mp4,1\n"b.mp4,2\n' + 'c.mp4,3\n' * 20_000)


@pytest.mark.parametrize(
    'content',
    [
        'a b/c d.mp4 3\n\nsome, where/e.mp4 12\n',
        'a b/c d.mp4 3\r\n\r\nsome, where/e.mp4 12\r\n',
        'a b/c d.mp4 3\r\rsome, where/e.mp4 12',
        'a b/c d.mp4\t3\n\nsome, where/e.mp4\t12\n',
        'a b/c d.mp4,3\n\n"some, where/e.mp4",12\n',
    ],
)
def test_lists_without_a_header(read, content):
    table = read(content)
    assert (table.columns, table.header, table.bad) == (['path', 'label'], False, [])
    assert table.rows == [(1, ['a b/c d.mp4', '3']), (3, ['some, where/e.mp4', '12'])]


def test_lists_of_several_heads(read):
    table = read('a b.mp4 3 4\nc.mp4 5\nd.mp4 x 6\n', heads=('noun', 'verb'))
    assert table.columns == ['path', 'noun', 'verb']
    assert table.rows == [(1, ['a b.mp4', '3', '4']), (3, ['d.mp4', 'x', '6'])]
    assert table.bad == [(2, "'c.mp4 5' must be path noun verb")]


def test_lists_with_numbers_of_frames(read):
    """The third column of TSN's lists is told by standing in every row, and only where folders are listed."""
    lines = 'some/dir 163 1\nmy dir 122 0\n'
    table = read(lines, folders=True)
    assert (table.columns, table.rows) == (
        ['path', 'num_frames', 'label'],
        [(1, ['some/dir', '163', '1']), (2, ['my dir', '122', '0'])],
    )
    table = read('run 163 1\nmy dir 0\n', folders=True)
    assert (table.columns, table.rows) == (['path', 'label'], [(1, ['run 163', '1']), (2, ['my dir', '0'])])
    assert read('dir/clip 7.mp4 163 1\n').rows == [(1, ['dir/clip 7.mp4 163', '1'])]
    table = read('a/b,30,2\nc,40,1\n', folders=True)
    assert (table.columns, table.rows[1]) == (['path', 'num_frames', 'label'], (2, ['c', '40', '1']))


def test_moments_in_time(read):
    table = read('bowing/b_1.mp4,bowing,3,1\n"a, b/c.mp4",ask,2,0\n', 'trainingSet.csv')
    assert (table.columns, table.header) == (['path', 'label', 'agree', 'disagree'], False)
    assert table.rows == [(1, ['bowing/b_1.mp4', 'bowing', '3', '1']), (2, ['a, b/c.mp4', 'ask', '2', '0'])]


def test_a_header_between_spaces(read):
    table = read('path label\na b.mp4 3\n', 'list.txt')
    assert (table.columns, table.rows) == (['path', 'label'], [(2, ['a b.mp4', '3'])])
    with pytest.raises(
        ValueError, match=r"list.txt: between spaces the path must come first; the header is 'la"
    ):
        read('label path\n3 a b.mp4\n', 'list.txt')


def test_json(read):
    items = [
        {'Path': 'a b.mp4', 'label': 3},
        {'path': 'ä.mp4', 'label': ['x', 'y'], 'start': 1.5},
        {'path': None},
    ]
    columns = ['path', 'label', 'start']
    values = [['a b.mp4', '3', ''], ['ä.mp4', 'x|y', '1.5'], ['', '', '']]
    table = read('\n' + '\n\n'.join(map(json.dumps, items)) + '\n', 'train.jsonl')
    assert (table.columns, table.rows) == (columns, list(zip((2, 4, 6), values, strict=True)))
    table = read(json.dumps(items, indent=1), 'train.json')
    assert (table.columns, table.rows) == (columns, list(zip((1, 2, 3), values, strict=True)))
    assert table.where(2) == 'train.json, item 2'


def test_json_with_mistakes(read):
    table = read('{"path": "a.mp4", "label": 1}\n{"path": "b.mp4",\n7\n', 'train.jsonl')
    assert table.rows == [(1, ['a.mp4', '1'])]
    assert [line for line, _ in table.bad] == [2, 3]
    assert table.bad[0][1].startswith('is not JSON: ')
    assert table.bad[1][1] == "'7' is no JSON object"
    with pytest.raises(ValueError, match=r'train.json is not JSON: Expecting .* line 1 column 2'):
        read('[oops]', 'train.json')
    with pytest.raises(
        ValueError, match=r'train.json must be a list of JSON objects, or one object a line: is no'
    ):
        read('{\n"a": 1,\n"b": 2\n}', 'train.json')
    with pytest.raises(ValueError, match=r'train.json has no rows'):
        read('[]', 'train.json')
    with pytest.raises(ValueError, match=r'train.json is not JSON: maximum recursion'):
        read('[' * 100_000, 'train.json')


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        (
            b'path,label\nx.mp4,0\ny\xe4.mp4,1\n',
            r'train.csv is not a table in UTF-8: byte 20 \(0xe4\), in line 3, is',
        ),
        (
            'path,label\nx.mp4,0\n'.encode('utf-16'),
            r'train.csv is not a table in UTF-8: byte 0 \(0xff\), in line 1',
        ),
        ('', r"train.csv: its first line, '', is neither a header, as path,label, nor a path and its label"),
        ('\n,,\n', r"train.csv: its first line, '', is neither"),
        ('path,label\n', r"train.csv has no rows under its header 'path,label'"),
        (
            'clip,action\nx,run\n',
            r"train.csv: its first line, 'clip,action', is neither a header, as path,label, ",
        ),
        ('x.mp4\ny.mp4\n', r"train.csv: its first line, 'x.mp4', is neither"),
    ],
)
def test_what_is_no_table(read, content, message):
    with pytest.raises(ValueError, match=message) as caught:
        read(content)
    assert '\n' not in str(caught.value)


def test_no_file(tmp_path):
    for file, cause in ((tmp_path / 'no.csv', 'No such file or directory'), (tmp_path, 'Is a directory')):
        with pytest.raises(ValueError, match=rf'table {file} cannot be read: {cause}'):
            read_table(file, heads=('label',), endings=ENDINGS)
