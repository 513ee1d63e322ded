"""Checksums of a folder: every change is found and named, and nothing else is."""

import errno
import hashlib
import json

import pytest

from vivit_jax import checksums


@pytest.fixture
def folder(tmp_path):
    for name, content in {
        'a': b'',
        'params/d/x': b'\0' * 5000,
        'params/d/y': b'y',
        'meta/metadata': b'{}',
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    checksums.write(tmp_path)
    return tmp_path


def test_what_is_written(folder):
    written = json.loads((folder / checksums.NAME).read_text())
    assert written['files'] == {
        'a': [0, hashlib.sha256(b'').hexdigest()],
        'meta/metadata': [2, hashlib.sha256(b'{}').hexdigest()],
        'params/d/x': [5000, hashlib.sha256(b'\0' * 5000).hexdigest()],
        'params/d/y': [1, hashlib.sha256(b'y').hexdigest()],
    }
    assert checksums.read(folder) == written['files']
    assert checksums.damage(folder) == []


def test_what_is_wrong_is_named(folder):
    (folder / 'params' / 'd' / 'x').write_bytes(b'\0' * 4096)
    (folder / 'params' / 'd' / 'y').write_bytes(b'z')
    (folder / 'a').unlink()
    (folder / 'params' / 'odd').touch()
    (folder / 'meta' / '.nfs000001').touch()  # a network's file system keeps such while somebody reads
    assert checksums.damage(folder) == [
        'a: is missing',
        'params/d/x: 4,096 bytes, should be 5,000',
        'params/d/y: its content has changed',
        'params/odd: does not belong there',
    ]
    assert checksums.damage(folder, ['meta']) == []
    assert checksums.damage(folder, ['meta', 'a']) == ['a: is missing']


@pytest.mark.parametrize('failures', [1, 3])
def test_a_disk_is_asked_again(folder, monkeypatch, failures):
    real, told = checksums._sum, []

    def fails(path):
        if path.name == 'x' and len(told) < failures:
            told.append(path)
            raise OSError(errno.EIO, 'Input/output error')
        return real(path)

    monkeypatch.setattr(checksums, '_sum', fails)
    monkeypatch.setattr(checksums, 'PAUSE', 0.0)
    lost = ['params/d/x: cannot be read (Input/output error)']
    assert checksums.damage(folder) == ([] if failures < 3 else lost)


@pytest.mark.parametrize('number', [errno.ESTALE, errno.EMFILE, errno.EACCES, errno.ETIMEDOUT])
def test_what_is_out_of_reach_is_not_damaged(folder, monkeypatch, number):
    def fails(path):
        raise OSError(number, 'out of reach')

    monkeypatch.setattr(checksums, '_sum', fails)
    with pytest.raises(OSError, match='out of reach'):
        checksums.damage(folder)


def test_a_folder_in_place_of_a_file(folder):
    (folder / 'a').unlink()
    (folder / 'a').mkdir()
    (folder / 'a' / 'b').touch()
    assert checksums.damage(folder) == ['a: is missing', 'a/b: does not belong there']


def test_the_list_itself_is_checked_to_the_bit(folder):
    """Whichever of its bits is flipped, wherever it ends."""
    content = (folder / checksums.NAME).read_bytes()
    assert checksums.parse(content) == (checksums.read(folder), True)
    for place in range(8 * len(content)):
        flipped = bytearray(content)
        flipped[place // 8] ^= 1 << place % 8
        with pytest.raises(checksums.Damaged):
            checksums.parse(bytes(flipped))
    for length in range(len(content)):
        with pytest.raises(checksums.Damaged):
            checksums.parse(content[:length])
    (folder / checksums.NAME).write_bytes(content[:-1])
    assert checksums.damage(folder, ['meta']) == ['checksums.json: its content has changed']


def forged(files):
    """A list that somebody else made, with a sum that is right."""
    body = {'files': files, 'root': True}
    digest = hashlib.sha256(json.dumps(body).encode()).hexdigest()
    return json.dumps(body | {'sha256': digest}, indent=1) + '\n'


@pytest.mark.parametrize(
    'content', ['[]', '{"files": []}', '{"files": 1, "root": 2}', '[' * 100_000, '\ud800']
)
def test_a_list_that_is_none(folder, content):
    (folder / checksums.NAME).write_bytes(content.encode('utf-8', 'surrogatepass'))
    assert checksums.damage(folder) == ['checksums.json: its content has changed']


def test_names_in_the_list_lead_nowhere(folder, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp('elsewhere') / 'secret'
    elsewhere.write_text('secret')
    names = [str(elsewhere), '../secret', 'a']
    entry = [6, hashlib.sha256(b'secret').hexdigest()]
    (folder / checksums.NAME).write_text(forged({name: entry for name in sorted(names)}))
    told = checksums.damage(folder)
    assert f'{elsewhere}: is missing' in told
    assert '../secret: is missing' in told
    assert 'a: 0 bytes, should be 6' in told


def test_files_of_the_folder_itself_may_follow(folder):
    """First what its folders hold, then the rest, which is not hashed twice."""
    (folder / checksums.NAME).unlink()
    checksums.write(folder, root=False)
    assert set(checksums.read(folder)) == {'meta/metadata', 'params/d/x', 'params/d/y'}
    (folder / 'a').write_bytes(b'later')
    assert checksums.damage(folder) == []
    (folder / 'params' / 'd' / 'y').write_bytes(b'z')
    checksums.write(folder)
    assert set(checksums.read(folder)) == {'a', 'meta/metadata', 'params/d/x', 'params/d/y'}
    assert checksums.damage(folder) == ['params/d/y: its content has changed']
    (folder / 'a').write_bytes(b'other')
    assert checksums.damage(folder, ['a']) == ['a: its content has changed']


@pytest.mark.parametrize('entry', [[1], 7, ['1', 'x'], [None, None], {'size': 1, 'sum': 2}])
def test_a_list_of_another_shape_is_damage(folder, entry):
    (folder / checksums.NAME).write_text(forged({'a': entry}))
    assert checksums.damage(folder) == ['checksums.json: its content has changed']
