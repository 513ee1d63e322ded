"""What a configuration feeds its model: examples for training and for evaluation, with their transforms and views."""

import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from vivit_jax.data import transforms, volume_transforms
from vivit_jax.data.bad_files import BadFiles
from vivit_jax.data.examples import EvaluationExamples, TrainingExamples
from vivit_jax.data.record import Source
from vivit_jax.data.sampling import Order
from vivit_jax.data.views import Views

# Share of clips whose colours change from which on 'auto' leaves them to the training step. That computes those of
# all clips, each in 0.53 times the host's processor time (docs/performance.md). Whatever the device: numbers do
# not depend on it.
WORTH_A_STEP = 0.6


def training_examples(
    config: ConfigDict, source: Source, bad_files: BadFiles | None = None
) -> TrainingExamples:
    """Returns what turns positions of the training stream into examples."""
    data = config.data
    classes = None
    if data.sampling == 'balanced':
        # Of several heads the first is balanced.
        classes = np.array([np.ravel(source[index].label)[0] for index in range(len(source))])
    on_host, on_device = augmentation(config)
    return TrainingExamples(
        source=source,
        split=data.train_split,
        order=Order(len(source), config.seed, classes),
        seed=config.seed,
        frames=data.frames,
        stride=data.stride,
        short=data.short,
        augmentation=on_host,
        on_device=on_device,
        bad_files=bad_files,
    )


def augmentation(
    config: ConfigDict,
) -> tuple[tuple[transforms.Transform, ...], tuple[transforms.OnDevice, ...]]:
    """Returns a training clip's transforms: those of the host, and those that the training step does after them."""
    data = config.data
    chain = transforms.training_transforms(
        short_side=data.short_side,
        crop=tuple(data.crop),
        scale_jitter=tuple(data.scale_jitter),
        flip=data.flip,
        colour_jitter=data.colour_jitter,
        colour_drop=data.colour_drop,
        randaugment_layers=data.randaugment_layers,
        randaugment_magnitude=data.randaugment_magnitude,
    ) + volume_transforms.volume_transforms(
        size=(data.frames, *data.crop),
        videos=data.source not in ('medmnist', 'volumes'),
        **data.volume_augment,
    )
    colours_last = any(
        isinstance(each, transforms.ColourJitter | transforms.ColourDrop) for each in chain[-1:]
    )
    worth = data.colour_jitter >= WORTH_A_STEP and colours_last
    if data.augment_on == 'device' or (data.augment_on == 'auto' and worth):
        return transforms.leave_to_device(chain)
    return chain, ()


def mirrored_axes(config: ConfigDict) -> tuple[int, ...]:
    """Returns the axes of `[t h w c]` along which evaluation mirrors: where told to, those that training does."""
    if not config.evaluation.mirror_views:
        return ()
    along = np.array(config.data.volume_augment.flip) > 0
    along[2] |= config.data.flip > 0
    return tuple(np.flatnonzero(along).tolist())


def evaluation_examples(
    config: ConfigDict,
    source: Source,
    *,
    temporal_views: int,
    spatial_views: int,
    mirrored: tuple[int, ...] = (),
    split: str = '',
    bad_files: BadFiles | None = None,
) -> EvaluationExamples:
    """Returns what turns indices into examples with their views."""
    data = config.data
    views = Views(
        frames=data.frames,
        stride=data.stride,
        short=data.short,
        short_side=data.short_side,
        crop=tuple(data.crop),
        temporal_views=temporal_views,
        spatial_views=spatial_views,
        mirrored=mirrored,
    )
    return EvaluationExamples(source=source, split=split, views=views, bad_files=bad_files)


def reading(config: ConfigDict, mesh: Mesh) -> dict[str, object]:
    """Returns the arguments of `pipeline.batches` that training and evaluation share."""
    data = config.data
    return {'mesh': mesh, 'threads': data.threads, 'workers': data.workers, 'prefetch': data.prefetch}
