"""What a configuration stands for: its sources, model, optimiser and numbers of steps."""

import dataclasses
import functools
from typing import Any

import jax
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from vivit_jax.config import flatten
from vivit_jax.data import pipeline, transforms
from vivit_jax.data.record import Source
from vivit_jax.formats.weights import KINDS
from vivit_jax.learning_rates import TRAIN, learning_rate_factors, scale_updates
from vivit_jax.losses import LOSSES
from vivit_jax.models.cost import multiply_adds
from vivit_jax.models.vivit import ViViT, create_model
from vivit_jax.optimizer import create_optimizer, learning_rate_schedule
from vivit_jax.pretrained import KERNELS, TEMPORAL_ATTENTIONS

AT_LEAST = {
    'data.frames': 1,
    'data.stride': 1,
    'data.channels': 1,
    'data.short_side': 0,
    'data.randaugment_layers': 0,
    'init_from.num_heads': 0,
    'data.threads': 1,
    'data.workers': 0,
    'data.prefetch': 1,
    'training.steps': 0,
    'training.batch_size': 1,
    'training.mixup_alpha': 0,
    'training.log_every': 1,
    'optimizer.head_rate': 0,
    'evaluation.every_steps': 0,
    'evaluation.batch_size': 1,
    'evaluation.temporal_views': 1,
    'checkpoint.every_steps': 1,
    'checkpoint.keep': 1,
    'sharding.fsdp': 1,
}
CHOICES: dict[str, tuple[object, ...]] = {
    'init_from.format': ('auto', *KINDS),
    'init_from.kernel': KERNELS,
    'init_from.temporal_attention': TEMPORAL_ATTENTIONS,
    'data.source': pipeline.SOURCES,
    'data.short': ('repeat_last', 'loop'),
    'training.loss': tuple(LOSSES),
    'optimizer.train': TRAIN,
    'evaluation.spatial_views': (1, 3),
    'evaluation.average': ('logits', 'softmax'),
}


def check(config: ConfigDict) -> None:
    """Looks at every setting that is not used before data is opened or training is over, so that none fails late.

    Raises:
        ValueError: Naming the key, its value and what is allowed.
    """
    values = flatten(config)
    for key, lowest in AT_LEAST.items():
        if values[key] < lowest:
            raise ValueError(f'{key}={values[key]}: must be at least {lowest}')
    for key, choices in CHOICES.items():
        if values[key] not in choices:
            raise ValueError(f'{key}={values[key]!r}: choose one of {", ".join(map(str, choices))}')
    for key in ('training.label_smoothing', 'training.ema_decay'):
        if not 0 <= values[key] < 1:
            raise ValueError(f'{key}={values[key]}: must be in [0, 1)')
    if not 0 < config.optimizer.layer_decay <= 1:
        raise ValueError(f'optimizer.layer_decay={config.optimizer.layer_decay}: must be in (0, 1]')
    if config.training.loss == 'sigmoid' and config.evaluation.average == 'softmax':
        raise ValueError(
            "evaluation.average='softmax' does not go with training.loss='sigmoid': choose 'logits'"
        )
    devices = jax.device_count()
    if config.training.batch_size % devices:
        raise ValueError(
            f'training.batch_size={config.training.batch_size} cannot be split evenly over {devices} devices'
        )
    if config.data.num_classes:
        # Counting goes through tubelets and patterns, and says where they do not fit the clip.
        multiply_adds(make_model(config), clip_shape(config))


def make_source(config: ConfigDict, split: str) -> Source:
    """Opens a split; a ValueError of one line says which setting is wrong or which data is missing."""
    data = config.data
    if data.root is None and data.source in ('video_files', 'medmnist'):
        raise ValueError(
            f'config.data.root is not set: get {data.dataset or "your videos"} and give its folder, laid out as '
            f'the docstring of the config tells, with --config.data.root=FOLDER'
        )
    options = dict(data[data.source]) if data.source in ('moving_digits', 'medmnist') else {}
    source = pipeline.make_source(
        data.source,
        split,
        root=data.root,
        heads=tuple(data.heads),
        num_classes=tuple(data.num_classes),
        frames=data.frames,
        seed=config.seed,
        options=options,
    )
    if not len(source):
        raise ValueError(
            f'the split {split!r} of data.source={data.source!r} is empty (data.root={data.root})'
        )
    sizes, classes = head_sizes(config, source), len(source.class_names)
    if sum(sizes) != classes:
        raise ValueError(
            f'data.num_classes={sizes} but the {split!r} split has {classes} classes: set '
            f"--config.data.num_classes='({classes},)', or '()' to take what the data has"
        )
    return source


def head_sizes(config: ConfigDict, source: Source | None = None) -> tuple[int, ...]:
    """Returns the classes of each head: those set, else those of the source."""
    sizes = tuple(config.data.num_classes)
    if not sizes and source is not None:
        sizes = (len(source.class_names),)
    if len(sizes) != len(config.data.heads):
        raise ValueError(
            f'data.num_classes={tuple(config.data.num_classes)} does not go with data.heads='
            f'{tuple(config.data.heads)}: one number a head'
        )
    return sizes


def make_model(config: ConfigDict, source: Source | None = None) -> ViViT:
    """Creates the model; the classes are those of the config, else of the source."""
    return create_model(sum(head_sizes(config, source)), **config.model)


def clip_shape(config: ConfigDict) -> tuple[int, int, int, int]:
    """Returns `(t, h, w, c)` of the clips that the model sees."""
    return (config.data.frames, *config.data.crop, config.data.channels)


@dataclasses.dataclass(frozen=True)
class Plan:
    """How many steps a run has, and when it evaluates."""

    total_steps: int
    steps_per_epoch: float
    evaluate_every: int


def plan(config: ConfigDict, num_examples: int) -> Plan:
    """Turns epochs into steps.

    Raises:
        ValueError: If there would be no step at all.
    """
    training = config.training
    per_epoch = num_examples / training.batch_size
    total = training.steps or round(training.epochs * per_epoch)
    if total < 1:
        raise ValueError(
            f'training.epochs={training.epochs} of {num_examples} clips in batches of {training.batch_size} is '
            'not one step: set training.steps, more epochs, or smaller batches'
        )
    every = config.evaluation.every_steps or round(config.evaluation.every_epochs * per_epoch)
    return Plan(total, per_epoch, max(every, 1))


def make_optimizer(config: ConfigDict, steps: Plan) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """Creates the optimiser, and the learning rate by step."""
    settings = config.optimizer
    warmup = float(settings.warmup_steps or settings.warmup_epochs * steps.steps_per_epoch)
    if warmup >= steps.total_steps:
        raise ValueError(
            f'the warm-up of {warmup:g} steps (optimizer.warmup_epochs={settings.warmup_epochs}, '
            f'optimizer.warmup_steps={settings.warmup_steps}) must be shorter than the {steps.total_steps} steps of '
            'training: set optimizer.warmup_steps or train longer'
        )
    schedule = learning_rate_schedule(
        learning_rate=settings.learning_rate,
        schedule=settings.schedule,
        warmup_steps=warmup,
        total_steps=steps.total_steps,
        drops=tuple(epoch * steps.steps_per_epoch for epoch in settings.drop_epochs),
    )
    optimizer = create_optimizer(
        name=settings.name,
        schedule=schedule,
        momentum=settings.momentum,
        b1=settings.b1,
        b2=settings.b2,
        epsilon=settings.epsilon,
        max_grad_norm=settings.max_grad_norm,
        weight_decay=settings.weight_decay,
        weight_decay_mode=settings.weight_decay_mode,
        weight_decay_mask=settings.weight_decay_mask,
    )
    if not learns_evenly(config):
        optimizer = scale_updates(optimizer, functools.partial(rate_factors, config))
    return optimizer, schedule


def learns_evenly(config: ConfigDict) -> bool:
    """Tells whether all parameters have the schedule's learning rate."""
    settings = config.optimizer
    return (settings.train, settings.freeze, settings.layer_decay, settings.head_rate) == (
        'all',
        '',
        1.0,
        1.0,
    )


def rate_factors(config: ConfigDict, params: Any) -> Any:
    """Returns the factor of every parameter's learning rate, see `learning_rate_factors`."""
    settings = config.optimizer
    return learning_rate_factors(
        params,
        train=settings.train,
        freeze=settings.freeze,
        layer_decay=settings.layer_decay,
        head_rate=settings.head_rate,
    )


def training_examples(config: ConfigDict, source: Source) -> pipeline.TrainingExamples:
    """Returns what turns positions of the training stream into examples."""
    data = config.data
    augmentation = transforms.training_transforms(
        short_side=data.short_side,
        crop=tuple(data.crop),
        scale_jitter=tuple(data.scale_jitter),
        flip=data.flip,
        colour_jitter=data.colour_jitter,
        colour_drop=data.colour_drop,
        randaugment_layers=data.randaugment_layers,
        randaugment_magnitude=data.randaugment_magnitude,
    )
    return pipeline.TrainingExamples(
        source=source,
        seed=config.seed,
        frames=data.frames,
        stride=data.stride,
        short=data.short,
        augmentation=augmentation,
    )


def evaluation_examples(
    config: ConfigDict, source: Source, *, temporal_views: int, spatial_views: int
) -> pipeline.EvaluationExamples:
    """Returns what turns indices into examples with their views."""
    data = config.data
    return pipeline.EvaluationExamples(
        source=source,
        frames=data.frames,
        stride=data.stride,
        short=data.short,
        short_side=data.short_side,
        crop=tuple(data.crop),
        temporal_views=temporal_views,
        spatial_views=spatial_views,
    )


def reading(config: ConfigDict, mesh: Mesh) -> dict[str, object]:
    """Returns the arguments of `pipeline.batches` that training and evaluation share."""
    data = config.data
    return {'mesh': mesh, 'threads': data.threads, 'workers': data.workers, 'prefetch': data.prefetch}
