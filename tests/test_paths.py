"""Paths of this machine and of object stores: the same operations, and one line where that cannot be."""

import contextlib
import errno
import os
import pathlib
import re
import shutil
import subprocess
import sys
import threading

import object_store
import pytest

from vivit_jax import mirror, paths

KINDS = ('gs', 's3')


@pytest.fixture(scope='module')
def store():
    return object_store.serve()


@pytest.fixture(params=['here', *KINDS])
def folder(request, tmp_path, store):
    """A folder, here and in each kind of store, empty."""
    store.objects.clear()
    store.facts.clear()
    return (
        tmp_path if request.param == 'here' else paths.path(f'{request.param}://bucket/runs/{tmp_path.name}')
    )


def test_of_this_machine_it_is_what_it_always_was():
    assert type(paths.path('runs/a')) is type(pathlib.Path('runs/a'))
    given = pathlib.Path('runs/a')
    assert paths.path(given) is given
    assert paths.path('a:b') == pathlib.Path('a:b')
    assert paths.path('/') == pathlib.Path('/')
    assert paths.expanded('~/x') == pathlib.Path.home() / 'x'


def test_a_local_path_loads_no_library_of_stores():
    code = (
        'import sys; from vivit_jax import paths\n'
        "paths.path('a'); print('fsspec' in sys.modules, 'etils' in sys.modules)"
    )
    told = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert told.stdout == 'False False\n'


@pytest.mark.parametrize('kind', KINDS)
def test_a_store_keeps_its_slashes(kind, store):
    path = paths.path(f'{kind}://bucket/runs') / 'a' / 'config.json'
    assert str(path) == os.fspath(path) == f'{kind}://bucket/runs/a/config.json'
    assert (path.name, path.suffix, str(path.parent)) == ('config.json', '.json', f'{kind}://bucket/runs/a')
    assert (
        paths.path(path) == path == paths.path(str(path)) == paths.absolute(path) == paths.expanded(str(path))
    )
    assert paths.is_remote(path)
    assert paths.is_remote(str(path))
    assert not paths.is_remote('gs/bucket')


@pytest.mark.parametrize(
    ('text', 'said'),
    [
        ('gs:/bucket/x', 'gs://BUCKET/'),
        ('s3:/bucket/x', 's3://BUCKET/'),
        ('gs://', 'gs://BUCKET/'),
        ('gs:///x', 'gs://BUCKET/'),
        ('hdfs://host/x', 'a path is of this machine, or gs://BUCKET/… or s3://BUCKET/…'),
        ('https://storage.googleapis.com/b/x', 'a path is of this machine, or gs://'),
    ],
)
def test_what_is_no_path_gets_one_line(text, said):
    with pytest.raises(ValueError, match=re.escape(said)) as caught:
        paths.path(text)
    assert str(caught.value).startswith(f'{text}: ')
    assert said in str(caught.value)
    assert '\n' not in str(caught.value)


@pytest.mark.parametrize(('kind', 'package', 'extra'), [('gs', 'gcsfs', 'gcs'), ('s3', 's3fs', 's3')])
def test_a_missing_package_is_named(kind, package, extra):
    code = (
        f"import sys; sys.modules['{package}'] = None\n"
        'from vivit_jax import paths\n'
        f"try: paths.path('{kind}://b/x')\nexcept ValueError as error: print(error)"
    )
    told = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout
    assert (
        told
        == f"{kind}://b/x: {kind}:// needs a package that is not installed: pip install 'vivit_jax[{extra}]'\n"
    )


def test_what_must_be_here_says_what_to_do():
    assert paths.here('~/x', '--output') == pathlib.Path.home() / 'x'
    with pytest.raises(
        ValueError, match=r'^--output=gs://b/x: must be of this machine; gcloud storage cp -r copies'
    ):
        paths.here('gs://b/x', '--output')
    with pytest.raises(ValueError, match=r'aws s3 cp --recursive'):
        paths.here('s3://b/x', 'data.cache')


def test_reading_and_writing(folder):
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / 'a.txt'
    assert not file.exists()
    assert not file.is_file()
    file.write_text('grün\n', encoding='utf-8')
    assert file.read_text(encoding='utf-8') == 'grün\n'
    assert file.read_bytes() == 'grün\n'.encode()
    assert file.is_file()
    assert not file.is_dir()
    assert folder.is_dir()
    assert paths.size(file) == 6
    (folder / 'below').mkdir(exist_ok=True)
    (folder / 'below' / 'b.csv').write_bytes(b'1')
    assert sorted(path.name for path in folder.iterdir()) == ['a.txt', 'below']
    assert [path.name for path in (folder / 'below').glob('*.csv')] == ['b.csv']
    file.rename(folder / 'c.txt')
    assert not file.exists()
    assert (folder / 'c.txt').exists()
    paths.rmtree(folder / 'below')
    assert [path.name for path in folder.iterdir()] == ['c.txt']
    with pytest.raises(FileNotFoundError):
        file.read_bytes()


def test_a_folder_is_removed_though_a_thread_still_writes_into_it(tmp_path, monkeypatch):
    folder, real, tries = tmp_path / 'busy', shutil.rmtree, []
    folder.mkdir()

    def rmtree(path):
        tries.append(path)
        if len(tries) < 3:
            raise OSError(errno.ENOTEMPTY, 'Directory not empty', str(path))
        real(path)

    monkeypatch.setattr(shutil, 'rmtree', rmtree)
    paths.rmtree(folder)
    assert len(tries) == 3
    assert not folder.exists()
    paths.rmtree(folder)  # gone already


def test_a_folder_that_a_thread_makes_anew_is_removed_again(tmp_path):
    folder = tmp_path / 'busy'
    folder.mkdir()
    late = threading.Timer(0.3, lambda: (folder / 'below').mkdir(parents=True))
    late.start()
    paths.rmtree(folder, quiet=1)
    assert not late.is_alive()
    assert not folder.exists()


def test_a_folder_that_always_comes_back_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, 'rmtree', lambda path: None)
    with pytest.raises(OSError, match='not empty'):
        paths.rmtree(tmp_path, patience=0.2)


def test_a_folder_that_stays_is_an_error(tmp_path, monkeypatch):
    def rmtree(path):
        raise OSError(errno.ENOTEMPTY, 'Directory not empty', str(path))

    monkeypatch.setattr(shutil, 'rmtree', rmtree)
    with pytest.raises(OSError, match='not empty'):
        paths.rmtree(tmp_path, patience=0.2)


@pytest.mark.parametrize('kind', KINDS)
def test_what_another_process_wrote_is_seen_at_once(kind, store):
    folder = paths.path(f'{kind}://bucket/runs/seen/{kind}')
    (folder / 'a').write_text('1')
    assert [path.name for path in folder.iterdir()] == ['a']
    assert not (folder / 'b').exists()
    name = str(folder / 'b').partition('://')[2]
    store.put(name, b'22')  # behind the back of this process
    assert (folder / 'b').exists()
    assert sorted(path.name for path in folder.iterdir()) == ['a', 'b']
    store.put(name, b'333')
    assert (folder / 'b').read_text() == '333'
    assert paths.size(folder / 'b') == 3
    store.delete(name)
    assert not (folder / 'b').exists()


def test_text_with_any_line_ends_and_letters(folder):
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / 'table.csv'
    with paths.open_text(file, 'w', newline='', errors='surrogateescape') as opened:
        opened.write('a\r\nb\udcff\n')
    assert file.read_bytes() == b'a\r\nb\xff\n'
    with paths.open_text(file, newline='', errors='replace') as opened:
        assert list(opened) == ['a\r\n', 'b\N{REPLACEMENT CHARACTER}\n']
    assert paths.read_text(file, errors='replace') == 'a\nb\N{REPLACEMENT CHARACTER}\n'


def test_a_file_is_replaced_whole_or_not_at_all(folder):
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / 'run.json'
    paths.replace_text(file, 'first')
    with contextlib.suppress(RuntimeError), paths.written(file) as unfinished:
        unfinished.write_text('half')
        raise RuntimeError
    assert file.read_text() == 'first'
    assert [path.name for path in folder.iterdir()] == ['run.json']
    with paths.written(file) as unfinished:
        assert unfinished.suffix == '.json'  # which some libraries go by
        unfinished.write_text('second')
        assert file.read_text() == 'first'
    assert file.read_text() == 'second'
    assert [path.name for path in folder.iterdir()] == ['run.json']


def test_a_file_has_the_usual_rights(tmp_path):
    paths.replace_text(tmp_path / 'ours', '')
    (tmp_path / 'theirs').write_text('')
    assert (tmp_path / 'ours').stat().st_mode == (tmp_path / 'theirs').stat().st_mode


def test_names_that_stores_take_for_patterns(folder):
    folder.mkdir(parents=True, exist_ok=True)
    names = ['[AUC]0.9@1.csv', 'a*b.csv', 'ab.csv', 'what?.csv']
    for name in names:
        paths.replace_text(folder / name, name)
    assert sorted(path.name for path in folder.iterdir()) == names
    assert all((folder / name).read_text() == name for name in names)
    paths.unlink(folder / 'a*b.csv')
    paths.unlink(folder / '[AUC]0.9@1.csv')
    paths.unlink(folder / 'is not there')
    assert sorted(path.name for path in folder.iterdir()) == ['ab.csv', 'what?.csv']


def test_a_copy_here_of_files_and_folders(folder):
    (folder / 'model' / 'parts').mkdir(parents=True, exist_ok=True)
    (folder / 'model' / 'config.json').write_text('{}')
    (folder / 'model' / 'parts' / 'a.npz').write_bytes(b'123')
    with paths.local(folder / 'model') as copy:
        assert isinstance(copy, pathlib.Path)
        assert copy.name == 'model'
        assert (copy / 'config.json').read_text() == '{}'
        assert (copy / 'parts' / 'a.npz').read_bytes() == b'123'
    assert copy.exists() == (not paths.is_remote(folder))
    with paths.local(folder / 'model' / 'config.json') as copy:
        assert copy.read_text() == '{}'
    with pytest.raises(FileNotFoundError), paths.local(folder / 'none') as copy:
        copy.read_bytes()


def test_what_tables_name(store):
    assert paths.join('gs://b/root', 'a/b.mp4') == 'gs://b/root/a/b.mp4'
    assert paths.join('gs://b/root', 's3://c/d.mp4') == 's3://c/d.mp4'
    assert paths.join('gs://b/root', '/data/d.mp4') == '/data/d.mp4'
    assert paths.join('root', 'gs://b/d.mp4') == 'gs://b/d.mp4'
    assert paths.join(pathlib.Path('root'), 'd.mp4') == 'root/d.mp4'


def test_a_store_that_refuses_says_so_in_one_line(store):
    store.refuse = lambda method, path: 'secret' in path
    try:
        for kind in KINDS:
            with pytest.raises(OSError, match=f'^{kind}://bucket/secret/x: |Forbidden|Access') as caught:
                paths.replace_text(paths.path(f'{kind}://bucket/secret/x'), '')
            assert '\n' not in str(caught.value)
    finally:
        store.refuse = lambda method, path: False


def test_files_that_grow(folder):
    """A store's files cannot: what is written here gets there when it is pushed."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / 'metrics.jsonl').write_text('1\n')
    with mirror.Mirror(folder) as copies:
        copies.fetch('metrics.jsonl')
        copies.fetch('is not there')
        with (copies.here / 'metrics.jsonl').open('a') as file:
            file.write('2\n')
            file.flush()
            copies.push()
            assert (folder / 'metrics.jsonl').read_text() == '1\n2\n'
            file.write('3\n')
    assert (folder / 'metrics.jsonl').read_text() == '1\n2\n3\n'
    assert copies.here.exists() == (not paths.is_remote(folder))


def test_only_what_has_changed_is_pushed(store):
    folder = paths.path('gs://bucket/runs/pushed')
    with mirror.Mirror(folder) as copies:
        (copies.here / 'a').write_text('1')
        (copies.here / 'b').write_text('1')
        copies.push()
        (copies.here / 'b').write_text('22')
        before = len(store.asked)
        copies.push()
        assert {path for _, path in store.asked[before:]} == {'/upload/storage/v1/b/bucket/o'}
    assert (folder / 'b').read_text() == '22'


def test_a_push_that_fails_is_a_warning_and_made_up_for(store):
    folder = paths.path('s3://bucket/runs/pushed')
    with mirror.Mirror(folder) as copies:
        (copies.here / 'a').write_text('1')
        store.refuse = lambda method, path: method in ('PUT', 'POST')
        try:
            with pytest.warns(UserWarning, match='s3://bucket/runs/pushed/a was not written: '):
                copies.push()
        finally:
            store.refuse = lambda method, path: False
    assert (folder / 'a').read_text() == '1'
