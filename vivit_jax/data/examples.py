"""What is read: a position of the training stream, or an index of an evaluation, becomes an example.

Worker processes import this file and what it needs, so nothing here knows jax: they start in less than a second.
"""

import dataclasses
from collections.abc import Callable

import numpy as np

from vivit_jax.data import clips, transforms
from vivit_jax.data.bad_files import BadFiles
from vivit_jax.data.record import Label, Source, UnreadableExample
from vivit_jax.data.sampling import Order
from vivit_jax.data.views import Views

Example = dict[str, np.ndarray]
# So many examples in a row that cannot be read are no accident: the disk is gone, not a file.
ATTEMPTS = 50


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingExamples:
    """Maps a position of the endless training stream to an example.

    An example that cannot be read is named in the list of bad files, and another one, drawn from the position's
    randomness, takes its place.

    Attributes:
        source: Where records come from.
        split: Its name, for the list of bad files.
        order: Which example is where in each epoch.
        seed: Of clips and augmentation.
        frames: Frames of a clip.
        stride: Frames of the video from one to the next.
        short: What a video shorter than its clip does, see `clips.random_clip`.
        augmentation: Transforms, in order.
        on_device: Transforms after these that are left to the training step: the example brings what they draw.
        bad_files: Where examples that cannot be read are named.
    """

    source: Source
    split: str
    order: Order
    seed: int
    frames: int
    stride: int
    short: str
    augmentation: tuple[Callable[..., np.ndarray], ...]
    on_device: tuple[transforms.OnDevice, ...] = ()
    bad_files: BadFiles | None = None

    def __call__(self, position: int) -> Example:
        """Returns `video` `[t h w c]`, `label`, `mask` and `index`; and an entry for each of `on_device`."""
        epoch, place = divmod(position, len(self.source))
        index = int(self.order(epoch)[place])
        rng = np.random.default_rng((self.seed, position))
        cause = ''
        for _ in range(ATTEMPTS):
            record = self.source[index]
            chosen = clips.random_clip(
                record.num_frames, frames=self.frames, stride=self.stride, rng=rng, short=self.short
            )
            try:
                pixels = record.read(chosen)
            except UnreadableExample as error:
                cause = str(error)
                _name_bad(self.bad_files, self.split, record.name, cause, 'while training')
                index = int(self.order(epoch)[rng.integers(len(self.source))])
                continue
            video = transforms.apply(self.augmentation, pixels, rng)
            drawn = {each.entry: each.draw(video, rng) for each in self.on_device}
            return _example(video, record.label, index, mask=True) | drawn
        raise ValueError(f'{ATTEMPTS} examples of {self.split!r} in a row cannot be read, the last: {cause}')


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationExamples:
    """Maps an index to an example with all its views; indices past the end give masked padding.

    An example that cannot be read is named in the list of bad files and masked as well.

    Attributes:
        source: Where records come from.
        split: Its name, for the list of bad files.
        views: What is read of each.
        bad_files: Where examples that cannot be read are named.
    """

    source: Source
    split: str
    views: Views
    bad_files: BadFiles | None = None

    def __call__(self, index: int) -> Example:
        """Returns `video` `[t h w c]`, or `[v t h w c]` of several views (time outermost), and the rest."""
        within = min(index, len(self.source) - 1)
        mask = index == within
        cause = ''
        for attempt in range(min(ATTEMPTS, len(self.source))):
            # Padding is another example's pixels: that they are there is all that matters.
            record = self.source[(within + attempt) % len(self.source)]
            try:
                video = self.views(record)
            except UnreadableExample as error:
                cause = str(error)
                _name_bad(self.bad_files, self.split, record.name, cause, 'while evaluating')
                mask = False
                continue
            return _example(video, self.source[within].label, within, mask=mask)
        if attempt == 0:
            raise ValueError(f'{record.name} cannot be read: {cause}')
        raise ValueError(
            f'{attempt + 1} examples of {self.split!r} in a row cannot be read, the last: {cause}'
        )


def _name_bad(bad_files: BadFiles | None, split: str, name: str, cause: str, found: str) -> None:
    if bad_files is not None:
        bad_files.add(split, found, [(name, cause)])


def _example(video: np.ndarray, label: Label, index: int, *, mask: bool) -> Example:
    of_classes = isinstance(label, tuple) and isinstance(label[0], float)
    return {
        'video': np.ascontiguousarray(video),
        'label': np.asarray(label, np.float32 if of_classes else np.int32),
        'mask': np.asarray(mask),
        'index': np.asarray(index, np.int32),
    }


@dataclasses.dataclass(frozen=True)
class Rows:
    """Reads the rows of each batch that belong to one process."""

    read: Callable[[int], Example]
    batch_size: int
    process: int
    processes: int

    def __call__(self, row: int) -> Example:
        """Returns the example of a row, counted from this process's first one of step 0."""
        step, place = divmod(row, self.batch_size // self.processes)
        return self.read(step * self.batch_size + self.process * (self.batch_size // self.processes) + place)
