"""What a trained model may be asked about: videos, folders, tables, pixels, examples of its run's own data."""

import itertools
import os
import re
from collections.abc import Sequence

import numpy as np
from ml_collections import ConfigDict

from vivit_jax import evaluate, experiment, paths
from vivit_jax.data.examine import Examination
from vivit_jax.data.given import open_given
from vivit_jax.data.joined import Joined, Some
from vivit_jax.data.opening import kinds_like
from vivit_jax.data.record import Label, Record, Source


def open_inputs(
    config: ConfigDict,
    names: Sequence[str],
    *,
    window: float = 0.0,
    every: float = 0.0,
    workdir: paths.Path | None = None,
    looking: Examination | None = None,
) -> Source:
    """Opens what is named.

    Args:
        config: Of the model, with the classes of its heads.
        names: Files and folders, see `given.open_given`; where there is none of a name, `SPLIT`, `SPLIT:INDEX` or
            `SPLIT:FIRST-LAST` of the data that the configuration is of.
        window: Seconds of each example of a video; 0: the whole.
        every: Seconds from one to the next; 0: as long as they are.
        workdir: Of the run, whose splits hold as they were drawn.
        looking: How files are looked into.

    Raises:
        ValueError: If nothing is named, there is nothing of a name, or windows are asked of the run's own data; one
            line.
    """
    if not names:
        raise ValueError('no videos are named: give at least one file, folder, table or split')
    looking = looking or experiment.examination(config)
    data = config.data
    volumes = {**data.volumes.to_dict(), 'clip': experiment.seen_of_volumes(config)}
    parts: list[Source] = []
    for own, group in itertools.groupby(names, lambda name: _is_own(config, name)):
        some = list(group)
        if own and window:
            raise ValueError(f'window={window:g}: windows are taken of files, not of the data of a run')
        if own:
            parts += [_examples(config, name, workdir, looking) for name in some]
            continue
        given = open_given(
            some,
            kinds=kinds_like(data.source, volumes),
            examination=looking,
            label=any_label(config),
            fps=data.fps,
            window=window,
            every=every,
            channels=data.channels,
        )
        parts.append(given)
    return parts[0] if len(parts) == 1 else Joined(tuple(parts))


def _is_own(config: ConfigDict, name: str) -> bool:
    """Tells whether a name is of the run's own data: no file, and one of its splits."""
    data = config.data
    splits = {data.train_split, data.validation_split, *data.test_splits, 'test'}
    # What looks like an example of a split and is none is answered with the splits there are.
    like_one = re.fullmatch(r'[\w-]+:\d+(-\d+)?', name) is not None
    if paths.is_remote(name):
        return False
    return not os.path.exists(name) and (name.partition(':')[0] in splits or like_one)


def _examples(config: ConfigDict, name: str, workdir: paths.Path | None, looking: Examination) -> Source:
    split, colon, text = name.partition(':')
    if workdir is not None:
        evaluate.keep_drawn(workdir, looking)
    source = experiment.open_source(config, split, looking)
    if not colon:
        return source
    match = re.fullmatch(r'(\d+)(?:-(\d+))?', text)
    first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, -1)
    if not 0 <= first <= last < len(source):
        raise ValueError(f'{name!r}: write SPLIT:INDEX or SPLIT:FIRST-LAST, from 0 to {len(source) - 1}')
    return Some(source, range(first, last + 1))


def of_pixels(config: ConfigDict, video: np.ndarray) -> Record:
    """Makes a record of pixels `[t h w c]`, or `[t h w]` of one channel: uint8, or float in [-1, 1].

    Raises:
        ValueError: If the model cannot take them; one line.
    """
    pixels = video[..., None] if video.ndim == 3 else video
    channels = config.data.channels
    if pixels.ndim != 4 or pixels.shape[3] != channels or not pixels.size:
        raise ValueError(f'video of shape {video.shape}: must be [t h w c] with c={channels}')
    if pixels.dtype != np.uint8:
        if pixels.dtype.kind != 'f' or not (pixels.min() >= -1 and pixels.max() <= 1):
            raise ValueError(
                f'video of {pixels.dtype} from {pixels.min():g} to {pixels.max():g}: must be uint8, or float in '
                '[-1, 1]'
            )
        pixels = pixels.astype(np.float32)
    return Record(
        name='array',
        label=any_label(config),
        num_frames=len(pixels),
        frame_size=(pixels.shape[1], pixels.shape[2]),
        read=lambda indices: pixels[indices],
    )


def any_label(config: ConfigDict) -> Label:
    """Returns a label of the model's form: of what is to be predicted none is known, but the step takes one."""
    sizes = tuple(config.data.num_classes)
    if config.training.loss == 'sigmoid':
        return (0.0,) * sum(sizes)
    return (0,) * len(sizes) if len(sizes) > 1 else 0
