"""Video sets of TensorFlow Datasets, as UCF101: their files read directly, and only the frames of a clip decoded.

TFDS and TensorFlow (the extra `tfds`) tell where files are and what classes are called, when a split is opened;
frames are read without them, by threads and processes alike. Sets prepared as TFRecord and as ArrayRecord are read
the same way (`tfds.data_source` would need the latter, and decode whole videos).
"""

import functools
import hashlib
import json
import os
import pathlib
import re
from typing import Any

from vivit_jax import paths
from vivit_jax.data.examine import Examination, examine
from vivit_jax.data.files import shards
from vivit_jax.data.listing import Layout
from vivit_jax.data.listing.splits import split_name
from vivit_jax.data.record import Found, Label, Record

EXTRA = "data.source='tfds' needs TensorFlow Datasets and TensorFlow: pip install 'vivit_jax[tfds]'"
FORM = 'NAME, NAME/CONFIG or NAME/CONFIG:VERSION, as ucf101/ucf101_1:2.0.0'


class TFDS:
    """A source of the videos of a prepared set; every process can read any of them, in any order.

    Attributes:
        class_names: As the set names them, those of several heads one after another.
        bad: (file and record, cause) of what cannot be used.
        lost: Examples that the set says are there, but are not or cannot be used: a shard is many.
        splits: Names of all splits there are.
        digest: Of the set with its version, classes, places and labels.
    """

    def __init__(
        self, split: str, *, layout: Layout, examination: Examination, name: str, video: str, label: str
    ):
        """Finds the videos of a split; nothing is downloaded.

        Args:
            split: `train`, `test`, whichever there is, or a slice, as `train[:90%]`
                (https://www.tensorflow.org/datasets/splits).
            layout: Its `root` is the folder of prepared sets, None for TFDS's own. Several heads are labelled by the
                features of their names.
            examination: How files are looked into.
            name: Which set, `NAME[/CONFIG][:VERSION]`.
            video: Its feature that holds the frames, `a/b` for b within a.
            label: Its feature that holds the class, of a single head.

        Raises:
            ValueError: If there is no such set, split or feature, or the set is not prepared; one line.
        """
        info = _info(name, layout.root)
        self.splits = tuple(info.splits)
        keys = (label,) if len(layout.heads) == 1 else layout.heads
        _check_video(info, video)
        self._several = layout.several_labels
        self._heads = [_class_names(info, key, layout.several_labels) for key in keys]
        self.class_names = [each for names in self._heads for each in names]
        folder, instructions = pathlib.Path(info.data_dir), _instructions(info, split)
        probe = functools.partial(shards.probe, video=video, labels=tuple(keys), texts=())
        files = [os.path.relpath(instruction.filename, folder) for instruction in instructions]
        outcomes = examine(f'tfds {video} {" ".join(keys)}', folder, files, probe, examination)
        self.bad: list[tuple[str, str]] = []
        self._examples: list[tuple[str, shards.Shot, Label]] = []
        for file, instruction in zip(files, instructions, strict=True):
            self._add(file, outcomes[file], instruction)
        self.lost = sum(instruction.take for instruction in instructions) - len(self._examples)
        self._folder, self._video, self._seconds = str(folder), video, examination.seconds
        lines = [[file, shot.number, label, shot.num_frames] for file, shot, label in self._examples]
        manifest = json.dumps([info.full_name, self.class_names, lines])
        self.digest = hashlib.sha256(manifest.encode()).hexdigest()

    def _add(self, file: str, found: Found | str, instruction: Any) -> None:
        """Adds those examples of a file that are asked for."""
        shots, bad = shards.unpack(found) if isinstance(found, Found) else ([], [('', found)])
        self.bad += [(f'{file}, {which}' if which else file, cause) for which, cause in bad]
        if not bad and len(shots) != instruction.examples_in_shard:
            self.bad.append(
                (file, f'{len(shots)} records, but there must be {instruction.examples_in_shard}')
            )
        for shot in shots:
            if instruction.skip <= shot.number < instruction.skip + instruction.take:
                label = self._label(shot)
                if isinstance(label, str):
                    self.bad.append((f'{file}, record {shot.number}', label))
                else:
                    self._examples.append((file, shot, label))

    def _label(self, shot: shards.Shot) -> Label | str:
        """Returns the label, or what is wrong with it."""
        for names, numbers in zip(self._heads, shot.labels, strict=True):
            if not all(0 <= number < len(names) for number in numbers):
                return f'label {", ".join(map(str, numbers))}: it must be in [0, {len(names)})'
            if len(numbers) != 1 and not self._several:
                return f'{len(numbers)} labels: there must be one'
        if self._several:
            return tuple(float(number in shot.labels[0]) for number in range(len(self._heads[0])))
        label = tuple(number for (number,) in shot.labels)
        return label if len(label) > 1 else label[0]

    def __len__(self) -> int:
        """Returns the number of videos that can be used."""
        return len(self._examples)

    def __getitem__(self, index: int) -> Record:
        """Returns the record at `index`, with frames uint8 `[t h w 3]`, RGB."""
        if not 0 <= index < len(self._examples):
            raise IndexError(f'TFDS: index {index} must be in [0, {len(self._examples)})')
        file, shot, label = self._examples[index]
        return Record(
            name=f'{file}, record {shot.number}',
            label=label,
            num_frames=shot.num_frames,
            frame_size=(shot.height, shot.width),
            read=functools.partial(
                shards.read, os.path.join(self._folder, file), shot, self._video, seconds=self._seconds
            ),
            codec=shot.codec,
        )


def _info(name: str, root: str | None) -> Any:
    """Returns what TFDS knows about a prepared set."""
    if not re.fullmatch(r'\w+(/[\w.-]+)?(:[0-9.]+)?', name):
        raise ValueError(f'config.data.tfds.name={name!r}: it must be {FORM}')
    folder = None if root is None else str(paths.here(root, 'config.data.root'))
    try:
        import tensorflow_datasets

        builder = tensorflow_datasets.builder(name, data_dir=folder)
        prepared, info = builder.is_prepared(), builder.info
    except ImportError as error:
        raise ValueError(f'{EXTRA} ({error})') from error
    except (AssertionError, ValueError) as error:
        cause = str(error).splitlines()[0]
        raise ValueError(f'config.data.tfds.name={name!r} with config.data.root={root!r}: {cause}') from error
    if not prepared:
        where = '' if folder is None else f', data_dir={folder!r}'
        raise ValueError(
            f'{info.full_name} is not prepared in {info.data_dir}: python -c "import tensorflow_datasets as tfds; '
            f'tfds.builder({name!r}{where}).download_and_prepare()" downloads and prepares it'
        )
    form = info.file_format.value
    if form not in ('tfrecord', 'array_record'):
        raise ValueError(f'{info.data_dir} is prepared as {form}: it must be tfrecord or array_record')
    return info


def _instructions(info: Any, split: str) -> list[Any]:
    """Returns which records of which files make a split."""
    own = next((name for name in info.splits if split_name(name) == split), split)
    try:
        return info.splits[own].file_instructions
    except ValueError as error:
        raise ValueError(
            f'{info.full_name} has no split {split!r}: choose one of {", ".join(info.splits)}, or a slice as '
            f"'{next(iter(info.splits))}[:90%]', with config.data.train_split, validation_split and test_splits"
        ) from error


def _feature(info: Any, key: str) -> Any:
    features = info.features
    for part in key.split('/'):
        try:
            features = features[part]
        except (KeyError, TypeError) as error:
            raise ValueError(
                f'{info.full_name} has no feature {key!r}, but {", ".join(sorted(info.features))}'
            ) from error
    return features


def _check_video(info: Any, key: str) -> None:
    import tensorflow_datasets

    feature = _feature(info, key)
    if not isinstance(getattr(feature, 'feature', None), tensorflow_datasets.features.Image):
        found = ' '.join(str(feature).split())
        raise ValueError(f'config.data.tfds.video={key!r} of {info.full_name} is no video, but {found}')


def _class_names(info: Any, key: str, several: bool) -> list[str]:
    import tensorflow_datasets

    feature = _feature(info, key)
    classes = getattr(feature, 'feature', None) if several else feature
    if not isinstance(classes, tensorflow_datasets.features.ClassLabel):
        wanted = 'sequence of class labels' if several else 'class label'
        found = ' '.join(str(feature).split())
        raise ValueError(f'feature {key!r} of {info.full_name} is no {wanted}, but {found}')
    return list(classes.names)
