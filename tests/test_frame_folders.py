import pickle

import cv2
import numpy as np
import pytest

from vivit_jax.data import frame_folders
from vivit_jax.data.examine import Examination
from vivit_jax.data.files import images
from vivit_jax.data.frame_folders import probe, read
from vivit_jax.data.listed import ListedFiles
from vivit_jax.data.listing import Layout
from vivit_jax.data.record import Found, UnreadableExample

SIZE = (24, 32)


def pixels(number, size=SIZE):
    return np.random.default_rng(number).integers(0, 256, (*size, 3), np.uint8)


def write(path, image, flags=()):
    """Writes what OpenCV calls BGR, so that the file holds `image` as RGB."""
    stored = image[..., [2, 1, 0, *range(3, image.shape[-1])]] if image.ndim == 3 else image
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(path.suffix, stored, list(flags))[1].tobytes())


def folder(path, names, first=0):
    for place, name in enumerate(names, start=first):
        write(path / name, pixels(place))
    return str(path)


@pytest.mark.parametrize(
    'names',
    [
        [f'frame_{number:010d}.png' for number in range(1, 14)],
        [f'frame_{number}.png' for number in range(8, 13)],  # 10 after 9, not before
        [f'{number:02d}.png' for number in range(97, 103)],
        [f'video_7_b2_{number:05d}_rgb.PNG' for number in range(5)],
        [f'1 é [{number}] 100%.png' for number in range(3)],
        ['frame_2.png', 'frame_10.png', 'frame_11.png', 'frame_30.png'],  # with gaps
        ['2024-01-31_23-59-59.png', '2024-02-01_00-00-00.png', '2024-02-01_00-00-01.png'],
        ['a.png', 'b.png', 'c 2.png'],
        ['one.png'],
    ],
)
def test_frames_come_in_the_order_of_their_numbers(tmp_path, names):
    path = folder(tmp_path / 'video', names)
    (tmp_path / 'video/._frame_1.png').write_text('what macOS leaves')
    (tmp_path / 'video/notes.txt').write_text('no image')
    (tmp_path / 'video/1.png.d').mkdir()
    (tmp_path / 'video/folder.png').mkdir()
    found = probe(path)
    assert isinstance(found, Found)
    assert (found.num_frames, found.frame_size, found.seconds, found.codec) == (len(names), SIZE, None, 'png')
    frames = read(path, found, np.arange(len(names)))
    np.testing.assert_array_equal(frames, [pixels(place) for place in range(len(names))])


def test_a_numbered_series_is_not_listed_again(tmp_path, monkeypatch):
    path = folder(tmp_path / 'video', [f'frame_{number:06d}.png' for number in range(3, 9)])
    found = probe(path)
    assert found.index == '["frame_", 6, ".png", 3]'
    monkeypatch.delattr('os.scandir')
    monkeypatch.delattr('os.listdir')
    frames = read(path, found, np.array([4, 0]))
    np.testing.assert_array_equal(frames, [pixels(4), pixels(0)])


def test_the_index_of_other_names_is_short_text(tmp_path):
    names = [f'frame_{2 * number:06d}.png' for number in range(3000)]
    assert len(frame_folders._pack(names)) < 10_000
    np.testing.assert_array_equal(
        frame_folders._names(frame_folders._pack(names), np.array([2999, 0])), [names[2999], names[0]]
    )
    strange = ['a\n.png', 'b\udcff.png', 'c/'[:1] + '.png']
    assert frame_folders._names(frame_folders._pack(strange), np.arange(3)) == strange


def test_any_order_repetitions_and_nothing(tmp_path):
    path = folder(tmp_path, [f'{number}.png' for number in range(5)])
    found = probe(path)
    np.testing.assert_array_equal(read(path, found, np.array([3, 1, 3])), [pixels(3), pixels(1), pixels(3)])
    assert read(path, found, np.array([], np.int64)).shape == (0, *SIZE, 3)
    for wrong in (-1, 5):
        with pytest.raises(IndexError, match=f'frames {wrong} to {wrong} must be in \\[0, 5\\)'):
            read(path, found, np.array([wrong]))


def test_flow_beside_colours_is_left_out(tmp_path):
    folder(tmp_path, [f'img_{number:05d}.png' for number in range(1, 4)])
    folder(tmp_path, [f'flow_{axis}_{number:05d}.png' for axis in 'xy' for number in range(1, 3)], first=50)
    found = probe(str(tmp_path))
    assert found.num_frames == 3
    np.testing.assert_array_equal(read(str(tmp_path), found, np.arange(3)), [pixels(i) for i in range(3)])


def test_several_series_are_refused(tmp_path):
    folder(tmp_path, ['a_1.png', 'a_2.png', 'a_3.png', 'b_1.png', 'b_2.png', 'cover.png'])
    assert probe(str(tmp_path)) == (
        'several series of images in it, of which one must stay: a_#.png (3), b_#.png (2)'
    )


def test_frames_of_another_size_are_resized_to_the_first(tmp_path):
    flat = np.full((48, 64, 3), (10, 200, 90), np.uint8)
    for place, size in enumerate([SIZE, (48, 64), (12, 16), SIZE]):
        write(tmp_path / f'{place}.png', flat[: size[0], : size[1]])
    found = probe(str(tmp_path))
    np.testing.assert_array_equal(read(str(tmp_path), found, np.arange(4)), [flat[:24, :32]] * 4)


def test_what_images_are_made_of(tmp_path):
    image, grey = pixels(0), pixels(1)[..., 0]
    alpha = np.dstack([image, grey])
    deep = np.random.default_rng(0).integers(0, 1 << 16, (*SIZE, 3), np.uint16)
    cases = {
        'rgb.png': (image, image),
        'rgb.bmp': (image, image),
        'alpha.png': (alpha, image),  # colours as they are stored, not mixed with a background
        'grey.png': (grey, np.dstack([grey] * 3)),
        'deep.png': (deep, (deep >> 8).astype(np.uint8)),
        'deep_grey.png': (deep[..., 0], np.dstack([(deep[..., 0] >> 8).astype(np.uint8)] * 3)),
    }
    for name, (stored, expected) in cases.items():
        write(tmp_path / name, stored)
        np.testing.assert_array_equal(images.decode((tmp_path / name).read_bytes()), expected, err_msg=name)
    write(tmp_path / 'lossless.webp', image, (cv2.IMWRITE_WEBP_QUALITY, 101))
    np.testing.assert_array_equal(images.decode((tmp_path / 'lossless.webp').read_bytes()), image)
    smooth = cv2.GaussianBlur(image, (0, 0), 4)
    write(tmp_path / 'rgb.jpg', smooth, (cv2.IMWRITE_JPEG_QUALITY, 100))
    assert np.abs(images.decode((tmp_path / 'rgb.jpg').read_bytes()).astype(int) - smooth).max() <= 4


def test_palettes_and_turned_images_equal_pillow(tmp_path):
    pillow = pytest.importorskip('PIL.Image')
    ops = pytest.importorskip('PIL.ImageOps')
    original = pillow.fromarray(pixels(0))
    for transparency in ({}, {'transparency': 3}):
        original.quantize(16).save(tmp_path / 'palette.png', **transparency)
        expected = np.asarray(original.quantize(16).convert('RGB'))
        np.testing.assert_array_equal(images.decode((tmp_path / 'palette.png').read_bytes()), expected)
    for turned in range(1, 9):
        exif = pillow.Exif()
        exif[0x0112] = turned
        original.save(tmp_path / 'turned.jpg', exif=exif, quality=95)
        with pillow.open(tmp_path / 'turned.jpg') as opened:
            expected = np.asarray(ops.exif_transpose(opened))
        decoded = images.decode((tmp_path / 'turned.jpg').read_bytes())
        np.testing.assert_allclose(decoded.astype(int), expected, atol=2)


@pytest.mark.parametrize('ending', ['.jpg', '.png', '.webp', '.bmp'])
def test_no_part_of_an_image_is_taken_for_one(tmp_path, ending):
    write(tmp_path / f'whole{ending}', pixels(0))
    data = (tmp_path / f'whole{ending}').read_bytes()
    assert images.decode(data).shape == (*SIZE, 3)
    assert images.format_of(data) == {'.jpg': 'jpeg'}.get(ending, ending[1:])
    for tenth in range(10):
        assert images.decode(data[: len(data) * tenth // 10]) is None
    assert images.decode(b'text, no image') is None
    assert images.format_of(b'text') == ''


def test_broken_and_missing_images_are_named(tmp_path):
    path = folder(tmp_path, [f'frame_{number}.png' for number in range(5)])
    found = probe(path)
    (tmp_path / 'frame_1.png').write_bytes(b'')
    (tmp_path / 'frame_2.png').write_bytes((tmp_path / 'frame_2.png').read_bytes()[:-20])
    (tmp_path / 'frame_3.png').unlink()
    np.testing.assert_array_equal(read(path, found, np.array([0, 4])), [pixels(0), pixels(4)])
    for number, cause in ((1, 'is no whole image'), (2, 'is no whole image'), (3, 'cannot be read: No such')):
        with pytest.raises(UnreadableExample, match=f'frame_{number}.png {cause}') as caught:
            read(path, found, np.array([0, number]))
        assert '\n' not in str(caught.value)


def test_one_broken_frame_does_not_spoil_a_folder(tmp_path):
    path = folder(tmp_path, [f'frame_{number}.png' for number in range(5)])
    (tmp_path / 'frame_0.png').write_bytes(b'')
    found = probe(path)
    assert (found.num_frames, found.frame_size) == (5, SIZE)


def test_what_is_no_folder_of_images(tmp_path):
    (tmp_path / 'file.mp4').write_text('a file')
    (tmp_path / 'empty').mkdir()
    folder(tmp_path / 'broken', ['1.png', '2.png'])
    for name in ('1.png', '2.png'):
        (tmp_path / 'broken' / name).write_bytes(b'no image')
    (tmp_path / 'links').mkdir()
    (tmp_path / 'links/1.png').symlink_to('gone.png')
    causes = {
        'gone': 'No such file or directory',
        'file.mp4': 'Not a directory',
        'empty': 'no image in it (.bmp, .jpeg, .jpg, .png, .webp)',
        'broken': '1.png is no whole image',
        'links': '1.png: No such file or directory',
    }
    assert {name: probe(str(tmp_path / name)) for name in causes} == causes


def test_folders_of_frames_as_a_source(tmp_path):
    for split, label, name in (('train', 'cut', 'v1'), ('train', 'wash', 'v 2'), ('validation', 'cut', 'v3')):
        folder(tmp_path / split / label / name, [f'frame_{number:010d}.png' for number in range(1, 7)])
    layout = Layout(root=str(tmp_path))
    source = ListedFiles('train', kind=frame_folders.KIND, layout=layout, examination=Examination())
    assert source.class_names == ['cut', 'wash']
    records = {source[index].name: source[index] for index in range(len(source))}
    assert set(records) == {'train/cut/v1', 'train/wash/v 2'}
    record = pickle.loads(pickle.dumps(records['train/wash/v 2']))
    assert (record.label, record.num_frames, record.frame_size, record.seconds) == (1, 6, SIZE, None)
    np.testing.assert_array_equal(record.read(np.array([5, 0])), [pixels(5), pixels(0)])


def test_segments_by_frames(tmp_path):
    folder(tmp_path / 'P01_01', [f'frame_{number:010d}.png' for number in range(1, 11)])
    (tmp_path / 'train.csv').write_text('path,label,start_frame,stop_frame\nP01_01,cut,3,6\n')
    layout = Layout(root=str(tmp_path))
    source = ListedFiles('train', kind=frame_folders.KIND, layout=layout, examination=Examination())
    assert (len(source), source[0].num_frames) == (1, 3)
    np.testing.assert_array_equal(source[0].read(np.arange(3)), [pixels(3), pixels(4), pixels(5)])
