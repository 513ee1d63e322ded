"""A file that takes too long is given up and named, and waiting does not count."""

import pathlib
import time

import av
import cv2
import numpy as np
import pytest
from fuzz_reading import framed, voxels
from test_tfrecords import entries, feature, field

from videos import write_video
from vivit_jax import experiment, feeding
from vivit_jax.config import load
from vivit_jax.data import frame_folders, volumes
from vivit_jax.data.bad_files import BadFiles
from vivit_jax.data.examine import Examination, examine
from vivit_jax.data.files import decoding, shards, time_limit
from vivit_jax.data.files.decoding import probe, read_frames
from vivit_jax.data.files.time_limit import TakesTooLong, TimeLimit
from vivit_jax.data.given import open_given
from vivit_jax.data.record import UnreadableExample
from vivit_jax.data.video_files import KIND

CAUSE = 'takes longer to read than data.file_seconds=1e-09'
AT_ONCE = 1e-9
CONFIG = str(pathlib.Path(__file__).parent.parent / 'configs' / 'my_videos.py')


@pytest.fixture(scope='module')
def video(tmp_path_factory):
    path = tmp_path_factory.mktemp('videos') / 'good.mp4'
    write_video(path, frames=12, size=(32, 48))
    return str(path)


def _work(seconds):
    began = time.thread_time()
    while time.thread_time() - began < seconds:
        pass


def test_work_counts_and_waiting_does_not():
    limit = TimeLimit(0.05)
    time.sleep(0.2)
    limit.check()
    _work(0.06)
    with pytest.raises(TakesTooLong, match=r'^takes longer to read than data\.file_seconds=0\.05$'):
        limit.check()
    TimeLimit(0).check()


def test_a_video(video):
    found = probe(video)
    assert probe(video, seconds=60) == found
    assert probe(video, seconds=AT_ONCE) == CAUSE
    with pytest.raises(UnreadableExample, match=f'^{video} cannot be read: {CAUSE}$'):
        read_frames(video, found, np.arange(5), seconds=AT_ONCE)
    with pytest.raises(UnreadableExample, match=f'^{video} cannot be read: {CAUSE}$'):
        read_frames(video, found, np.arange(12)[::-1], seconds=AT_ONCE)


def test_a_video_that_is_decoded_from_its_start(tmp_path):
    path = tmp_path / 'a.avi'
    write_video(path, 'mpeg4', {'bf': '2'}, frames=12)
    found = probe(str(path))
    with pytest.raises(UnreadableExample, match=CAUSE):
        read_frames(str(path), found, np.array([11]), seconds=AT_ONCE)


def test_a_slow_disk_is_no_fault_of_the_file(video, monkeypatch):
    """FFmpeg counts by the clock: what it gave up is begun anew while there was no work."""
    real, tries = av.open, []

    def slow(file, *arguments, **options):
        assert options['timeout'] == 5
        tries.append(file)
        if len(tries) < 4:
            raise av.error.ExitError(1, 'Immediate exit requested')
        return real(file, *arguments, **options)

    monkeypatch.setattr(av, 'open', slow)
    assert probe(video, seconds=5).num_frames == 12
    assert len(tries) == 4

    def endless(file, *arguments, **options):
        _work(0.05)
        raise av.error.ExitError(1, 'Immediate exit requested')

    monkeypatch.setattr(av, 'open', endless)
    assert probe(video, seconds=0.1) == 'takes longer to read than data.file_seconds=0.1'


def test_frames_volumes_and_records(tmp_path):
    jpeg = cv2.imencode('.jpg', np.zeros((16, 24, 3), np.uint8))[1].tobytes()
    (tmp_path / 'frames').mkdir()
    (tmp_path / 'frames' / '1.jpg').write_bytes(jpeg)
    found = frame_folders.probe(str(tmp_path / 'frames'))
    with pytest.raises(UnreadableExample, match=f'frames: {CAUSE}$'):
        frame_folders.read(str(tmp_path / 'frames'), found, np.zeros(2, int), seconds=AT_ONCE)
    (tmp_path / 'a.nii.gz').write_bytes(voxels('nifti.nii.gz', tmp_path))
    preparation = volumes.Preparation(size=(4, 4, 4))
    found = volumes.probe(str(tmp_path / 'a.nii.gz'), preparation=preparation)
    with pytest.raises(UnreadableExample, match=CAUSE):
        volumes.read(
            str(tmp_path / 'a.nii.gz'), found, np.arange(4), preparation=preparation, seconds=AT_ONCE
        )
    frames = field(1, entries({'image/encoded': feature(jpeg), 'clip/label/index': feature([1])}))
    (tmp_path / 'a.tfrecord').write_bytes(framed(frames))
    path = str(tmp_path / 'a.tfrecord')
    ((shot,), _) = shards.unpack(shards.probe(path, video='image/encoded', labels=(), texts=()))
    with pytest.raises(UnreadableExample, match=f'a.tfrecord, record 0: {CAUSE}$'):
        shards.read(path, shot, 'image/encoded', np.zeros(2, int), seconds=AT_ONCE)


def test_it_is_looked_at_again_on_another_day(tmp_path, video):
    folder, name = pathlib.Path(video).parent, pathlib.Path(video).name
    impatient = Examination(cache=tmp_path, seconds=AT_ONCE)
    kind = KIND.within(impatient.seconds)
    assert examine(kind.name, folder, [name], kind.probe, impatient) == {name: CAUSE}
    again = Examination(cache=tmp_path, seconds=60)
    kind = KIND.within(again.seconds)
    assert examine(kind.name, folder, [name], kind.probe, again)[name].num_frames == 12
    # What was found is kept.
    assert examine(kind.name, folder, [name], KIND.within(AT_ONCE).probe, impatient)[name].num_frames == 12
    assert time_limit.is_one(f'a.mp4 cannot be read: {CAUSE}')
    assert not time_limit.is_one('is empty')


def test_files_named_on_a_command_line(video):
    given = open_given([video], kinds=(KIND,), examination=Examination(seconds=AT_ONCE))
    assert given.bad == [(video, CAUSE)]


def test_a_run_names_it(tmp_path, video, monkeypatch):
    """Of a run's videos one takes too long while it trains: it is replaced, named, counted."""
    for number in range(4):
        for label in 'ab':
            (tmp_path / 'videos' / label).mkdir(parents=True, exist_ok=True)
            (tmp_path / 'videos' / label / f'{number}.mp4').write_bytes(pathlib.Path(video).read_bytes())
    small = {'data.frames': '4', 'data.short_side': '36', 'data.crop': '32,32', 'model.width': '12'}
    folders = {'data.root': str(tmp_path / 'videos'), 'data.cache': str(tmp_path / 'cache')}
    assert load(CONFIG, {}).data.file_seconds == 60
    config = load(CONFIG, small | folders | {'training.batch_size': '8', 'data.file_seconds': '0.5'})
    source = experiment.make_source(config, 'train')
    slow = source[1].name
    real = decoding.open_video

    def open_slowly(file, seconds):
        if file.endswith(slow):
            _work(0.6)
        return real(file, seconds)

    monkeypatch.setattr(decoding, 'open_video', open_slowly)
    named = BadFiles(tmp_path / 'bad_files.csv')
    examples = feeding.training_examples(config, source, named)
    for position in range(len(source)):
        assert source[int(examples(position)['index'])].name != slow
    ((key, (cause, found)),) = named.read().items()
    assert (key, found) == (('train', slow), 'while training')
    assert cause.endswith(f'{slow} cannot be read: takes longer to read than data.file_seconds=0.5')


@pytest.mark.parametrize('value', ['-1', 'nan'])
def test_a_limit_that_is_none(value):
    with pytest.raises(ValueError, match=r'data\.file_seconds'):
        experiment.check(load(CONFIG, {'data.file_seconds': value}))
