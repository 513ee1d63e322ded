"""Scans: where their axes go, what happens to their voxels, and what is said of files that are no scans."""

import gzip
import io
import itertools
import pickle
import sys
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from vivit_jax import experiment, feeding
from vivit_jax.config import load
from vivit_jax.data import volumes
from vivit_jax.data.examine import Examination
from vivit_jax.data.files import scans
from vivit_jax.data.listed import ListedFiles
from vivit_jax.data.listing import Layout
from vivit_jax.data.record import Found, UnreadableExample
from vivit_jax.data.volumes import Preparation, probe, read

SHAPE = (3, 4, 5)
VALUES = np.arange(60, dtype=np.int16).reshape(SHAPE)  # to the right, to the front, upwards: RAS
# Values 0 to 59 become -1 to 1.
AS_STORED = {'fit': 'pad', 'intensity': 'window', 'window': (0.0, 59.0)}


def scaled(values):
    return (np.asarray(values) / 29.5 - 1).astype(np.float32)


@pytest.fixture
def nibabel():
    return pytest.importorskip('nibabel', reason='NIfTI needs the extra `volumes`, which is not installed')


def nifti(nibabel, path, values=VALUES, spacing=(1.0, 1.0, 1.0), **header):
    """Writes a file whose axes go right, front and up."""
    image = nibabel.Nifti1Image(np.asarray(values), np.diag([*spacing, 1.0]))
    image.header.set_xyzt_units(header.pop('unit', 'mm'))
    if header:
        image.header.set_slope_inter(**header)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        nibabel.save(image, path)
    return path


def volume(path, **options):
    """Probes a file and reads all of it."""
    preparation = Preparation(**options)
    found = probe(str(path), preparation=preparation)
    assert isinstance(found, Found), found
    assert (found.num_frames, *found.frame_size) == preparation.size
    slices = read(str(path), found, np.arange(found.num_frames), preparation=preparation)
    assert slices.dtype == np.float32
    assert slices.shape == (*preparation.size, 1)
    return slices[..., 0]


# --- Where axes go ---

# Slices of the values above: the first upwards, to the back, to the left, and so on.
TURNED = {
    'axial': VALUES[::-1, ::-1, :].transpose(2, 1, 0),
    'coronal': VALUES[::-1, ::-1, ::-1].transpose(1, 2, 0),
    'sagittal': VALUES[::-1, ::-1, ::-1].transpose(0, 2, 1),
}


@pytest.mark.parametrize('slices', TURNED)
def test_slices_are_where_they_should_be_however_the_file_is_turned(nibabel, tmp_path, slices):
    expected = scaled(TURNED[slices])
    for order in itertools.permutations(range(3)):
        for signs in itertools.product((1, -1), repeat=3):
            stored = VALUES.transpose(order)[tuple(slice(None, None, sign) for sign in signs)]
            affine = np.zeros((4, 4))
            affine[3, 3] = 1
            for own, (world, sign) in enumerate(zip(order, signs, strict=True)):
                affine[world, own] = sign
                affine[world, 3] = 0 if sign == 1 else SHAPE[world] - 1
            path = tmp_path / 'turned.nii'
            nibabel.save(nibabel.Nifti1Image(np.ascontiguousarray(stored), affine), path)
            found = volume(path, size=expected.shape, slices=slices, **AS_STORED)
            np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize('ending', ['nii', 'nii.gz', 'NII.GZ'])
@pytest.mark.parametrize('dtype', [np.uint8, '>i2', np.int32, np.float32, np.float64])
def test_types_and_compression(nibabel, tmp_path, ending, dtype):
    path = nifti(nibabel, tmp_path / f'scan.{ending}', VALUES.astype(dtype))
    found = volume(path, size=(5, 4, 3), **AS_STORED)
    np.testing.assert_allclose(found, scaled(TURNED['axial']), atol=1e-6)


def test_nifti_2_and_a_fourth_axis_of_one(nibabel, tmp_path):
    path = tmp_path / 'scan.nii.gz'
    nibabel.save(nibabel.Nifti2Image(VALUES[..., np.newaxis], np.eye(4)), path)
    found = volume(path, size=(5, 4, 3), **AS_STORED)
    np.testing.assert_allclose(found, scaled(TURNED['axial']), atol=1e-6)


@pytest.mark.parametrize('axis', range(3))
@pytest.mark.parametrize('shape', [SHAPE, (*SHAPE, 1), (1, *SHAPE), (*SHAPE, 1, 1)])
@pytest.mark.parametrize('order', ['C', 'F'])
def test_axes_of_numpys_files(tmp_path, axis, shape, order):
    values = np.asarray(VALUES.reshape(shape), order=order)
    np.save(tmp_path / 'scan.npy', values)
    np.savez_compressed(tmp_path / 'scan.npz', values)
    expected = scaled(np.moveaxis(VALUES, axis, 0))
    for file in ('scan.npy', 'scan.npz'):
        found = volume(tmp_path / file, size=expected.shape, depth_axis=axis, **AS_STORED)
        np.testing.assert_allclose(found, expected, atol=1e-6)


def test_which_array_of_several(tmp_path):
    path = tmp_path / 'scan.npz'
    others = {'affine': np.eye(4), 'second': VALUES + 2, 'third': VALUES + 3}
    for more, added in (({}, 2), ({'image': VALUES + 1}, 1), ({'image': VALUES + 1, 'volume': VALUES}, 0)):
        np.savez(path, **others, **more)
        found = volume(path, size=SHAPE, **AS_STORED)
        np.testing.assert_allclose(found, np.minimum(scaled(VALUES + added), 1), atol=1e-6)


def test_some_slices_in_any_order(tmp_path):
    np.save(tmp_path / 'scan.npy', VALUES)
    preparation = Preparation(size=SHAPE, **AS_STORED)
    found = probe(str(tmp_path / 'scan.npy'), preparation=preparation)
    assert found == Found(num_frames=3, frame_size=(4, 5), seconds=None, codec='npy int16')
    slices = read(str(tmp_path / 'scan.npy'), found, np.array([2, 0, 2]), preparation=preparation)
    np.testing.assert_allclose(slices[..., 0], scaled(VALUES[[2, 0, 2]]), atol=1e-6)


# --- Intensities ---


def test_a_window_of_hounsfield_units(nibabel, tmp_path):
    hounsfield = np.array([-3000, -1000, -160, 40, 240, 3000]).reshape(6, 1, 1)
    stored = ((hounsfield + 1024) / 2).astype(np.int16)
    path = nifti(nibabel, tmp_path / 'ct.nii.gz', stored, slope=2.0, inter=-1024.0)
    window = {'intensity': 'window', 'window': (-160.0, 240.0), 'fit': 'pad'}
    found = volume(path, size=(1, 1, 6), **window)
    np.testing.assert_allclose(found.ravel(), [1, 1, 0, -1, -1, -1], atol=1e-6)  # from right to left


def test_percentiles_by_hand(tmp_path):
    values = np.random.default_rng(0).permutation(1001).reshape(7, 11, 13).astype(np.float32)
    np.save(tmp_path / 'scan.npy', values)
    found = volume(tmp_path / 'scan.npy', size=(7, 11, 13), fit='pad', percentiles=(10.0, 60.0))
    np.testing.assert_allclose(found, np.clip((values - 100) / 250 - 1, -1, 1), atol=1e-6)


def test_percentiles_of_large_scans_are_taken_of_a_part(tmp_path, monkeypatch):
    monkeypatch.setattr(volumes, 'SAMPLED', 1000)
    # Every row is the same: a sample that took every 128th voxel would see one column.
    values = np.broadcast_to(np.arange(128, dtype=np.uint8), (16, 64, 128))
    np.save(tmp_path / 'scan.npy', values)
    found = volume(tmp_path / 'scan.npy', size=(16, 64, 128), fit='pad', percentiles=(0.0, 100.0))
    np.testing.assert_allclose(found, values / 63.5 - 1, atol=0.03)


def test_a_small_thing_on_an_even_ground(tmp_path):
    values = np.zeros((10, 10, 10), np.uint8)
    values[4, 4, 4:6] = 1, 3
    np.save(tmp_path / 'scan.npy', values)
    found = volume(tmp_path / 'scan.npy', size=(10, 10, 10), fit='pad')
    np.testing.assert_allclose(found, values / 1.5 - 1, atol=1e-6)


@pytest.mark.parametrize(
    'options', [{'intensity': 'window', 'window': (0.0, 4.0)}, {'percentiles': (0.0, 100.0)}]
)
@pytest.mark.parametrize('dtype', [np.float16, np.float32, np.float64])
def test_what_is_no_number(tmp_path, options, dtype):
    values = np.array([[[0, 1, np.nan, 4, np.inf, -np.inf, 2, np.nan]]], dtype)
    np.save(tmp_path / 'scan.npy', values)
    found = volume(tmp_path / 'scan.npy', size=(1, 1, 8), fit='pad', **options)
    np.testing.assert_allclose(found.ravel(), [-1, -0.5, -1, 1, 1, -1, 0, -1], atol=1e-6)


def test_truth_values(tmp_path):
    values = np.random.default_rng(0).random((4, 4, 4)) < 0.5
    np.save(tmp_path / 'mask.npy', values)
    found = volume(tmp_path / 'mask.npy', size=(4, 4, 4), fit='pad')
    np.testing.assert_array_equal(found, np.where(values, 1, -1))


# --- Sizes ---


def test_cut_and_padded_about_the_centre(tmp_path):
    np.save(tmp_path / 'scan.npy', VALUES)
    found = volume(tmp_path / 'scan.npy', size=(6, 2, 5), **AS_STORED)
    expected = np.full((6, 2, 5), -1, np.float32)
    expected[1:4] = scaled(VALUES[:, 1:3])
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_enlarged_as_by_scipy(tmp_path):
    values = np.random.default_rng(0).random((5, 6, 7), np.float32)
    np.save(tmp_path / 'scan.npy', values)
    options = {'intensity': 'window', 'window': (0.0, 1.0)}
    found = volume(tmp_path / 'scan.npy', size=(10, 9, 7), **options)
    expected = ndimage.zoom(values, (2, 1.5, 1), order=1, mode='nearest', grid_mode=True)
    np.testing.assert_allclose(found, 2 * expected - 1, atol=1e-5)


def test_shrinking_leaves_nothing_out(tmp_path):
    # A board of black and white voxels is grey from afar, wherever the new voxels lie.
    values = np.indices((40, 40, 40)).sum(axis=0) % 2
    np.save(tmp_path / 'scan.npy', values.astype(np.uint8))
    found = volume(tmp_path / 'scan.npy', size=(7, 8, 9), percentiles=(0.0, 100.0))
    assert np.abs(found).max() < 0.01


@pytest.mark.parametrize(
    ('unit', 'millimetres'), [('mm', 1), ('unknown', 1), ('micron', 1e-3), ('meter', 1e3)]
)
def test_spacing_becomes_isotropic(nibabel, tmp_path, unit, millimetres):
    # 8 x 6 x 4 voxels of 0.5 x 1 x 3 mm: 4 x 6 x 12 mm; the values are millimetres upwards.
    upwards = np.broadcast_to(np.arange(4) * 3.0 + 1.5, (8, 6, 4)).astype(np.float32)
    spacing = tuple(side / millimetres for side in (0.5, 1.0, 3.0))
    path = nifti(nibabel, tmp_path / 'scan.nii', upwards, spacing, unit=unit)
    options = {'fit': 'pad', 'spacing': 1.0, 'intensity': 'window', 'window': (0.0, 12.0)}
    found = volume(path, size=(14, 6, 6), **options)
    expected = np.full((14, 6, 6), -1.0)
    # Voxels of 1 mm: between the middles of the first and last slice, 1.5 and 10.5 mm, all interpolated.
    expected[1:13, :, 1:5] = (np.clip(np.arange(12) + 0.5, 1.5, 10.5) / 6 - 1)[:, np.newaxis, np.newaxis]
    np.testing.assert_allclose(found, expected, atol=1e-5)


# --- What is no scan ---


def bytes_of(values):
    file = io.BytesIO()
    np.save(file, values)
    return file.getvalue()


def header_only(shape, descr='<f4'):
    """A file that claims voxels and has none."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {'shape': shape, 'fortran_order': False, 'descr': descr})
    return file.getvalue()


def bomb(path):
    """An archive of a few kilobytes that unpacks to an endless row of zeros."""
    with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as archive:
        archive.writestr('volume.npy', header_only((2048, 2048, 2048)) + bytes(10**7))


def without_voxels(path):
    with zipfile.ZipFile(path, 'w') as archive:
        archive.writestr('notes.txt', 'a scan')


def short_in_archive(path):
    with zipfile.ZipFile(path, 'w') as archive:
        archive.writestr('volume.npy', bytes_of(VALUES)[:-10])


FAULTS = {
    'empty.npy': (lambda path: path.write_bytes(b''), 'not an array in the format of NumPy'),
    'text.npy': (lambda path: path.write_text('a scan'), 'not an array in the format of NumPy'),
    'cut.npy': (lambda path: path.write_bytes(bytes_of(VALUES)[:-1]), 'cut off: 247 of 248 bytes are there'),
    'pickled.npy': (lambda path: np.save(path, np.array([[[None]]])), 'stores the type object'),
    'records.npy': (lambda path: np.save(path, np.zeros((2, 2, 2), 'u1,u1,u1')), 'stores colours or records'),
    'complex.npy': (lambda path: np.save(path, np.zeros((2, 2, 2), complex)), 'stores the type complex128'),
    'words.npy': (lambda path: np.save(path, np.full((2, 2, 2), 'a')), 'stores the type <U1'),
    'picture.npy': (lambda path: np.save(path, np.zeros((4, 4))), 'has 2 axes (4x4): one volume has 3'),
    'colour.npy': (lambda path: np.save(path, np.zeros((4, 4, 4, 3))), 'has 4 axes (4x4x4x3): one volume has 3'),
    'none.npy': (lambda path: np.save(path, np.zeros((4, 0, 4))), 'has no voxels (4x0x4)'),
    'huge.npy': (
        lambda path: path.write_bytes(header_only((2000, 2000, 2000))),
        'claims 8,000,000,000 voxels (2000x2000x2000), more than 536,870,912',
    ),
    'thread.npy': (
        lambda path: np.save(path, np.zeros((1, 1, 32_769), np.uint8)),
        'has 32,769 voxels along an axis (1x1x32769), more than 32,768',
    ),
    'folder.npy': (lambda path: path.mkdir(), 'Is a directory'),
    'text.npz': (lambda path: path.write_text('a scan'), 'File is not a zip file'),
    'bomb.npz': (bomb, 'holds no volume: volume.npy: claims 8,589,934,592 voxels (2048x2048x2048), more than'),
    'notes.npz': (without_voxels, 'holds no volume: notes.txt: not an array in the format of NumPy'),
    'nothing.npz': (lambda path: np.savez(path), 'holds no volume: it is empty'),
    'short.npz': (short_in_archive, 'holds no volume: volume.npy: cut off: 238 of 248 bytes are there'),
    'folder.npz': (lambda path: path.mkdir(), 'Is a directory'),
}  # fmt: skip


@pytest.mark.parametrize('name', FAULTS)
def test_a_file_that_is_no_scan_is_told_by_its_header(tmp_path, name):
    write, cause = FAULTS[name]
    path = tmp_path / name
    write(path)
    told = probe(str(path), preparation=Preparation(size=(4, 4, 4)))
    assert isinstance(told, str)
    assert told.startswith(cause)
    assert '\n' not in told


@pytest.mark.parametrize(
    ('values', 'cause'),
    [
        (np.full((3, 3, 3), -1024, np.int16), 'all voxels are -1024: there is nothing to see'),
        (np.full((3, 3, 3), np.nan), 'none of its voxels is a finite number'),
        (
            np.where(np.arange(27).reshape(3, 3, 3) % 2, np.nan, 7.0),
            'all voxels are 7: there is nothing to see',
        ),
    ],
)
@pytest.mark.parametrize('intensity', ['window', 'percentiles'])
def test_a_scan_with_nothing_in_it_is_told_when_it_is_read(tmp_path, values, cause, intensity):
    np.save(tmp_path / 'scan.npy', values)
    with pytest.raises(UnreadableExample, match=f'^{cause}$'):
        volume(tmp_path / 'scan.npy', size=(3, 3, 3), intensity=intensity)


def test_one_voxel_is_something_to_see(tmp_path, monkeypatch):
    monkeypatch.setattr(volumes, 'SAMPLED', 10)
    values = np.zeros((9, 9, 9), np.uint8)
    values[3, 5, 7] = 4
    np.save(tmp_path / 'scan.npy', values)
    found = volume(tmp_path / 'scan.npy', size=(9, 9, 9), fit='pad')
    np.testing.assert_array_equal(found, np.where(values, 1, -1))


def nifti_faults(nibabel, folder):
    """Writes files that are no scans; returns what must be said of each."""
    good = gzip.decompress(nifti(nibabel, folder / 'good.nii.gz').read_bytes())
    colours = np.zeros((2, 2, 2), [('R', 'u1'), ('G', 'u1'), ('B', 'u1')])
    claims = bytearray(good)
    claims[42:48] = np.array([3000, 3000, 3000], '<i2').tobytes()
    behind = bytearray(good)
    behind[108:112] = np.float32(1e12).tobytes()  # where its voxels begin
    within = bytearray(good)
    within[108:112] = bytes(4)
    flat = bytearray(good)
    flat[280:328] = bytes(48)  # the rows of its affine matrix
    nowhere = bytearray(good)
    nowhere[280:284] = np.float32(np.nan).tobytes()
    told = {
        'text.nii': (b'a scan', 'not a NIfTI file'),
        'text.nii.gz': (b'a scan', 'not a NIfTI file'),
        'packed_text.nii.gz': (gzip.compress(b'a scan'), 'not a NIfTI file'),
        'empty.nii': (b'', ''),
        'cut.nii': (good[:400], 'cut off: 400 of 472 bytes are there'),
        'claims.nii.gz': (gzip.compress(claims), 'claims 27,000,000,000 voxels (3000x3000x3000), more than'),
        'behind.nii.gz': (
            gzip.compress(behind),
            'claims that voxels begin at byte 999,999,995,904, not in [352, 16,777,216]',
        ),
        'within.nii': (bytes(within), 'claims that voxels begin at byte 0, not in [352, 16,777,216]'),
        'nowhere.nii': (bytes(nowhere), 'its affine matrix does not tell which axis is which'),
        'flat.nii': (bytes(flat), 'its affine matrix does not tell which axis is which'),
    }
    for name, (content, _) in told.items():
        (folder / name).write_bytes(content)
    causes = {name: cause for name, (_, cause) in told.items()}
    for name, values, cause in (
        ('series.nii', np.zeros((4, 4, 4, 3), np.int16), 'has 4 axes (4x4x4x3): one volume has 3'),
        ('slice.nii', np.zeros((4, 4), np.int16), 'has 2 axes (4x4): one volume has 3'),
        ('colours.nii', colours, 'stores colours or records: voxels must be whole or real numbers'),
        ('complex.nii', np.zeros((2, 2, 2), np.complex64), 'stores the type complex64'),
    ):
        nifti(nibabel, folder / name, values)
        causes[name] = cause
    return causes


def test_a_nifti_file_that_is_no_scan(nibabel, tmp_path):
    for name, cause in nifti_faults(nibabel, tmp_path).items():
        told = probe(str(tmp_path / name), preparation=Preparation(size=(4, 4, 4)))
        assert isinstance(told, str), name
        assert told.startswith(cause), name
        assert told, name
        assert '\n' not in told


def test_a_compressed_file_cut_off_anywhere(nibabel, tmp_path):
    values = np.random.default_rng(0).integers(0, 1000, (16, 16, 16), np.int16)
    whole = nifti(nibabel, tmp_path / 'good.nii.gz', values).read_bytes()
    path = tmp_path / 'cut.nii.gz'
    for tenth in range(10):
        path.write_bytes(whole[: len(whole) * tenth // 10])
        told = probe(str(path), preparation=Preparation(size=(4, 4, 4)))
        assert isinstance(told, str), tenth
        assert told, tenth


def test_damage_in_the_middle_is_told_when_it_is_read(nibabel, tmp_path):
    values = np.random.default_rng(0).integers(0, 1000, (48, 48, 48), np.int16)
    path = nifti(nibabel, tmp_path / 'scan.nii.gz', values)
    content = bytearray(path.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 100] = bytes(100)
    path.write_bytes(content)
    with pytest.raises(UnreadableExample) as caught:
        volume(path, size=(4, 4, 4))
    assert '\n' not in str(caught.value)


def test_a_file_packed_in_parts(nibabel, tmp_path):
    content = gzip.decompress(nifti(nibabel, tmp_path / 'good.nii.gz').read_bytes())
    (tmp_path / 'parts.nii.gz').write_bytes(gzip.compress(content[:400]) + gzip.compress(content[400:]))
    found = volume(tmp_path / 'parts.nii.gz', size=(5, 4, 3), **AS_STORED)
    np.testing.assert_allclose(found, scaled(TURNED['axial']), atol=1e-6)


def test_a_file_that_is_gone_when_it_is_read(tmp_path):
    np.save(tmp_path / 'scan.npy', VALUES)
    preparation = Preparation(size=SHAPE)
    found = probe(str(tmp_path / 'scan.npy'), preparation=preparation)
    (tmp_path / 'scan.npy').unlink()
    with pytest.raises(UnreadableExample, match=r'^No such file or directory$'):
        read(str(tmp_path / 'scan.npy'), found, np.arange(3), preparation=preparation)


def test_spacing_needs_files_that_tell_it(tmp_path):
    np.save(tmp_path / 'scan.npy', VALUES)
    told = probe(str(tmp_path / 'scan.npy'), preparation=Preparation(size=SHAPE, fit='pad', spacing=1.0))
    assert told == 'does not tell its spacing (NumPy files never do): set config.data.volumes.spacing=0'


def test_a_spacing_that_is_made_up_is_none(nibabel, tmp_path, capfd, caplog):
    """Where a header has no matrix and 0 for a spacing, nibabel takes 1 and says so at every reading."""
    image = nibabel.Nifti1Image(VALUES, np.eye(4))
    image.set_sform(None, 0)
    image.set_qform(np.diag([2.0, 3.0, 4.0, 1.0]), 1)
    path = tmp_path / 'scan.nii'
    nibabel.save(image, path)
    apart = {'fit': 'pad', 'spacing': 1.0, 'intensity': 'window', 'window': (0.0, 59.0)}
    assert scans.open_scan(str(path), slices='axial', depth_axis=0).spacing == (4.0, 3.0, 2.0)
    content = bytearray(path.read_bytes())
    content[84:88] = bytes(4)  # of height
    path.write_bytes(content)
    told = probe(str(path), preparation=Preparation(size=SHAPE, **apart))
    assert isinstance(told, str)
    assert told.startswith('does not tell its spacing')
    # As stored it is a scan like others.
    np.testing.assert_allclose(volume(path, size=(5, 4, 3), **AS_STORED), scaled(TURNED['axial']), atol=1e-6)
    assert not caplog.records
    assert capfd.readouterr() == ('', '')


def test_without_nibabel_one_line_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'nibabel', None)
    path = tmp_path / 'scan.nii'
    path.write_bytes(b'')
    with pytest.raises(ValueError, match=r"need the package nibabel: pip install 'vivit_jax\[volumes\]'$"):
        probe(str(path), preparation=Preparation(size=SHAPE))


# --- Options, and the source ---


@pytest.mark.parametrize(
    ('changed', 'message'),
    [
        ({'fit': 'crop'}, "fit='crop': choose one of resample, pad"),
        ({'slices': 'oblique'}, "slices='oblique': choose one of axial, coronal, sagittal"),
        ({'depth_axis': 3}, 'depth_axis=3: choose one of 0, 1, 2'),
        ({'intensity': 'mean'}, "intensity='mean': choose one of window, percentiles"),
        ({'size': (4, -1, 4)}, 'size=(4, -1, 4): must be at least 1 voxel each, at most 536,870,912 in all'),
        (
            {'size': (0, 3, 9)},
            'size=(0, 3, 9): must be at least what the model sees, (4, 4, 4), or 0 for as much',
        ),
        ({'window': (5.0, 5.0)}, 'window=(5.0, 5.0): must be (low, high) with low < high'),
        ({'window': (5.0, float('inf'))}, 'window=(5.0, inf): must be (low, high) with low < high'),
        (
            {'percentiles': (1.0, 101.0)},
            'percentiles=(1.0, 101.0): must be (low, high) with 0 <= low < high <=',
        ),
        ({'spacing': -1.0}, 'spacing=-1.0: must be millimetres above 0, or 0 for voxels as stored'),
        ({'spacing': 1.0}, "spacing=1.0: needs fit='pad'"),
    ],
)
def test_options_out_of_range(changed, message):
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - compared as plain text below
        volumes.kind(**({'clip': (4, 4, 4), 'size': (0, 0, 0)} | changed))
    assert str(caught.value).startswith(f'config.data.volumes.{message}')


def test_a_kind_tells_what_it_looks_for():
    own = volumes.kind(clip=(16, 32, 32), size=(0, 48, 0))
    assert own.name == 'volumes of 16x48x32 voxels'
    assert own.times is None
    assert own.endings == scans.ENDINGS
    apart = volumes.kind(clip=(16, 32, 32), size=(0, 0, 0), fit='pad', spacing=1.5)
    assert apart.name == 'volumes of 16x32x32 voxels 1.5 mm apart'


def test_a_source_of_scans(tmp_path):
    rng = np.random.default_rng(0)
    for split, count in (('train', 3), ('validation', 1)):
        for name in ('healthy', 'ill'):
            folder = tmp_path / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                np.save(folder / f'{number}.npy', rng.integers(0, 99, (6, 7, 8), np.uint8))
    (tmp_path / 'train/ill/broken.npy').write_text('a scan')
    kind = volumes.kind(clip=(4, 5, 5), size=(0, 0, 0))
    source = ListedFiles('train', kind=kind, layout=Layout(root=str(tmp_path)), examination=Examination())
    assert source.class_names == ['healthy', 'ill']
    assert [(name.rpartition('/')[2], cause) for name, cause in source.bad] == [
        ('broken.npy', 'not an array in the format of NumPy')
    ]
    assert [source[index].label for index in range(len(source))] == [0, 0, 0, 1, 1, 1]
    record = source[4]
    assert (record.num_frames, record.frame_size, record.seconds, record.codec) == (
        4,
        (5, 5),
        None,
        'npy uint8',
    )
    expected = record.read(np.array([3, 0]))
    assert (expected.shape, expected.dtype) == ((2, 5, 5, 1), np.float32)
    sent = pickle.dumps(source)
    np.testing.assert_array_equal(pickle.loads(sent)[4].read(np.array([3, 0])), expected)


def test_batches_of_scans_are_floats(tmp_path, nibabel):
    rng = np.random.default_rng(0)
    for name in ('healthy', 'ill'):
        (tmp_path / name).mkdir()
        for number in range(5):
            values = rng.integers(-1000, 1000, (10, 12, 14)).astype(np.int16)
            nifti(nibabel, tmp_path / name / f'{number}.nii.gz', values)
    config = load(
        str(Path(__file__).parent.parent / 'configs/my_volumes.py'),
        {'data.root': str(tmp_path), 'data.frames': '8', 'data.crop': '(6, 6)', 'data.cache': str(tmp_path)},
    )
    training = feeding.training_examples(config, experiment.make_source(config, 'train'))
    source = experiment.make_source(config, 'validation')
    evaluation = feeding.evaluation_examples(config, source, temporal_views=1, spatial_views=1)
    for example in (training(0), training(5), evaluation(0)):
        assert (example['video'].shape, example['video'].dtype) == ((8, 6, 6, 1), np.float32)
        assert np.abs(example['video']).max() <= 1
    np.testing.assert_array_equal(training(3)['video'], training(3)['video'])
    assert (training(0)['video'] != training(len(training.source))['video']).any()
    config.data.channels = 3
    with pytest.raises(ValueError, match=r"^data.channels=3: volumes of data.source='volumes' have 1$"):
        experiment.check(config)
    config.data.volume_augment.rotate90 = (0.0, 0.5, 0.0)
    with pytest.raises(
        ValueError, match=r'volume_augment\.rotate90=.* about height only where depth and width'
    ):
        feeding.training_examples(config, source)
    config.data.source = 'video_files'
    with pytest.raises(ValueError, match=r'volume_augment\.rotate90=.* would mix time with space'):
        feeding.training_examples(config, source)
