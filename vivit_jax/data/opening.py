"""Sources by name: which there are, and how each is opened."""

from collections.abc import Mapping
from typing import Any

from vivit_jax.data.examine import Examination
from vivit_jax.data.listing import Layout
from vivit_jax.data.record import Source

LISTED = ('video_files', 'frame_folders', 'volumes')  # by folders or tables
SOURCES = (*LISTED, 'array_record', 'tfrecords', 'tfds', 'medmnist', 'moving_digits')


def open_source(
    name: str,
    split: str,
    *,
    layout: Layout,
    examination: Examination,
    frames: int,
    fps: float,
    seed: int,
    options: Mapping[str, Any],
) -> Source:
    """Opens one split of a data set; whatever is wrong with single files is in its `bad`.

    Args:
        name: One of `SOURCES`.
        split: Which split; the source tells which it has.
        layout: Where examples are told, and how they are labelled.
        examination: How files are looked into.
        frames: Frames of a generated clip.
        fps: Frames a second that are counted; 0: the file's own.
        seed: Of generated clips.
        options: Further settings of this source, as `config.data.<name>`.

    Raises:
        ValueError: If the source or the split is unknown, or the data is not there; one line.
    """
    if name not in SOURCES:
        raise ValueError(f'data.source={name!r}: choose one of {", ".join(SOURCES)}')
    if fps and name != 'video_files':
        raise ValueError(
            f'data.fps={fps:g}: clips of data.source={name!r} are counted in frames; set it to 0'
        )
    if name in LISTED:
        from vivit_jax.data.listed import ListedFiles

        kind = _kind(name, options)
        return ListedFiles(split, kind=kind, layout=layout, examination=examination, fps=fps)
    if name == 'array_record':
        from vivit_jax.data.array_record import ArrayRecords

        return ArrayRecords(split, root=layout.root, seconds=examination.seconds)
    if name == 'tfrecords':
        from vivit_jax.data.tfrecords import TFRecords

        return TFRecords(split, layout=layout, examination=examination, **options)
    if name == 'tfds':
        from vivit_jax.data.tfds import TFDS

        return TFDS(split, layout=layout, examination=examination, **options)
    if name == 'medmnist':
        from vivit_jax.data.medmnist import MedMNIST

        return MedMNIST(split, root=layout.root, **options)
    from vivit_jax.data.moving_digits import SPLITS, MovingDigits

    sizes = {part: options[('test' if part.startswith('test') else part) + '_size'] for part in SPLITS}
    # MovingDigits tells of an unknown split.
    return MovingDigits(split, size=sizes.get(split, 1), seed=seed, frames=frames, canvas=options['canvas'])


def kinds_like(name: str, options: Mapping[str, Any]) -> tuple[Any, ...]:
    """Returns the kinds of single files that go into a model of examples of a source, see `listed.Kind`.

    Args:
        name: One of `SOURCES`.
        options: Of volumes: `config.data.volumes`, with the clip; of MedMNIST the clip alone.
    """
    if name == 'medmnist':
        # Its voxels are bytes, seen as they are.
        options = {'clip': options['clip'], 'size': (0, 0, 0), 'intensity': 'window', 'window': (0.0, 255.0)}
    if name in ('medmnist', 'volumes'):
        return (_kind('volumes', options),)
    return (_kind('video_files', {}), _kind('frame_folders', {}))


def _kind(name: str, options: Mapping[str, Any]) -> Any:
    if name == 'video_files':
        from vivit_jax.data import video_files

        return video_files.KIND
    if name == 'frame_folders':
        from vivit_jax.data import frame_folders

        return frame_folders.KIND
    from vivit_jax.data import volumes

    return volumes.kind(**options)
