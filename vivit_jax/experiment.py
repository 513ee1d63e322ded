"""What a configuration stands for: its sources, model, optimiser and numbers of steps."""

import dataclasses
import functools
import gc
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import jax
import optax
from ml_collections import ConfigDict

from vivit_jax import feeding, paths
from vivit_jax.config import flatten
from vivit_jax.config_values import shown
from vivit_jax.data.examine import Examination, default_cache
from vivit_jax.data.listing import Layout
from vivit_jax.data.opening import SOURCES
from vivit_jax.data.opening import open_source as open_by_name
from vivit_jax.data.record import Source
from vivit_jax.data.sampling import SAMPLING
from vivit_jax.formats.weights import KINDS
from vivit_jax.learning_rates import TRAIN, learning_rate_factors, scale_updates
from vivit_jax.losses import LOSSES
from vivit_jax.models.cost import multiply_adds
from vivit_jax.models.vivit import ViViT, create_model
from vivit_jax.nan_guard import ON_NAN
from vivit_jax.optimizer import STATE_DTYPES, create_optimizer, learning_rate_schedule
from vivit_jax.pretrained import KERNELS, TEMPORAL_ATTENTIONS

MANIFEST = (
    'manifest.jsonl.gz'  # in a workdir: the examples that a run began with, and what was in their files
)
AT_LEAST = {
    'seed': 0,
    'data.split_seed': 0,
    'data.frames': 1,
    'data.stride': 1,
    'data.fps': 0,
    'data.max_bad': 0,
    'data.file_seconds': 0,
    'data.channels': 1,
    'data.train_examples': 0,
    'data.short_side': 0,
    'data.randaugment_layers': 0,
    'init_from.num_heads': 0,
    'data.threads': 1,
    'data.workers': 0,
    'data.prefetch': 1,
    'training.steps': 0,
    'training.batch_size': 1,
    'training.accumulate': 1,
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
AT_MOST = {
    'seed': 2**32 - 1,
    'data.split_seed': 2**32 - 1,
    'data.frames': 2**14,
    'data.channels': 2**10,
    'data.short_side': 2**14,
    'data.threads': 2**10,
    'data.workers': 2**10,
    'data.prefetch': 2**10,
    'data.randaugment_layers': 2**10,
    'data.moving_digits.canvas': 2**14,
    'training.batch_size': 2**24,
    'evaluation.batch_size': 2**24,
    'evaluation.temporal_views': 2**10,
}
CHOICES: dict[str, tuple[object, ...]] = {
    'init_from.format': ('auto', *KINDS),
    'init_from.kernel': KERNELS,
    'init_from.temporal_attention': TEMPORAL_ATTENTIONS,
    'data.source': SOURCES,
    'data.on_bad_video': ('skip', 'error'),
    'data.sampling': SAMPLING,
    'data.short': ('repeat_last', 'loop'),
    'data.augment_on': ('auto', 'host', 'device'),
    'training.loss': tuple(LOSSES),
    'training.on_nan': ON_NAN,
    'optimizer.train': TRAIN,
    'optimizer.state_dtype': STATE_DTYPES,
    'evaluation.spatial_views': (1, 3),
    'evaluation.average': ('logits', 'softmax'),
    'evaluation.report': ('standard', 'medical'),
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
    for key, most in AT_MOST.items():
        if values[key] > most:
            raise ValueError(f'{key}={values[key]}: must be at most {most:,}')
    if not all(1 <= side <= 2**14 for side in values['data.crop']):
        raise ValueError(f'data.crop={values["data.crop"]}: must be (high, wide), each from 1 to {2**14:,}')
    for key, choices in CHOICES.items():
        if values[key] not in choices:
            raise ValueError(f'{key}={shown(values[key])}: choose one of {", ".join(map(str, choices))}')
    for key in ('training.label_smoothing', 'training.ema_decay'):
        if not 0 <= values[key] < 1:
            raise ValueError(f'{key}={values[key]}: must be in [0, 1)')
    if config.data.source in ('medmnist', 'volumes') and config.data.channels != 1:
        raise ValueError(
            f'data.channels={config.data.channels}: volumes of data.source={config.data.source!r} have 1'
        )
    if not 0 < config.data.validation_share < 1:
        raise ValueError(f'data.validation_share={config.data.validation_share}: must be in (0, 1)')
    if config.data.sampling == 'balanced' and config.training.loss == 'sigmoid':
        raise ValueError(
            "data.sampling='balanced' needs one class an example, not training.loss='sigmoid': choose 'uniform'"
        )
    if not 0 < config.optimizer.layer_decay <= 1:
        raise ValueError(f'optimizer.layer_decay={config.optimizer.layer_decay}: must be in (0, 1]')
    if config.evaluation.report == 'medical' and len(config.data.heads) > 1:
        raise ValueError(
            f"evaluation.report='medical' takes one head, not data.heads={tuple(config.data.heads)}: "
            "choose 'standard'"
        )
    if config.training.loss == 'sigmoid' and config.evaluation.average == 'softmax':
        raise ValueError(
            "evaluation.average='softmax' does not go with training.loss='sigmoid': choose 'logits'"
        )
    if config.data.augment_on == 'device':
        feeding.augmentation(config)
    devices = jax.device_count()
    if config.training.batch_size % devices:
        raise ValueError(
            f'training.batch_size={config.training.batch_size} cannot be split evenly over {devices} devices'
        )
    if config.training.batch_size // devices % config.training.accumulate:
        raise ValueError(
            f'training.accumulate={config.training.accumulate}: must divide the '
            f'{config.training.batch_size // devices} clips of training.batch_size={config.training.batch_size} '
            f'that are on each of {devices} devices'
        )
    if config.evaluation.mirror_views and not feeding.mirrored_axes(config):
        raise ValueError(
            'evaluation.mirror_views=True mirrors along the axes that training mirrors, but data.flip and '
            'data.volume_augment.flip are 0: set one of them, or evaluation.mirror_views=False'
        )
    if config.data.num_classes:
        # Counting goes through tubelets and patterns, and says where they do not fit the clip.
        multiply_adds(make_model(config), clip_shape(config))


def examination(config: ConfigDict, on_progress: Callable[[int, int], None] | None = None) -> Examination:
    """Returns how files are looked into; `on_progress` is told of the files done and in all."""
    cache = paths.here(config.data.cache, 'data.cache') if config.data.cache else default_cache()
    on_progress = on_progress or (lambda done, total: None)
    return Examination(cache=cache, on_progress=on_progress, seconds=config.data.file_seconds)


def open_source(config: ConfigDict, split: str, looking: Examination | None = None) -> Source:
    """Opens a split, whatever is wrong with single files; a ValueError of one line says what is wrong with it."""
    data = config.data
    if data.root is None and not data.csv and data.source not in ('tfds', 'medmnist', 'moving_digits'):
        page = 'docs/volumes.md' if data.source == 'volumes' else 'docs/data.md'
        raise ValueError(
            f'config.data.root is not set: get {data.dataset or "your videos"} and give its folder, laid out as '
            f'the docstring of the config and {page} tell, with --config.data.root=FOLDER'
        )
    layout = Layout(
        root=data.root,
        csv=data.csv,
        heads=tuple(data.heads),
        num_classes=tuple(data.num_classes),
        several_labels=config.training.loss == 'sigmoid',
        validation_share=data.validation_share,
        group=data.group,
        seed=data.split_seed,
    )
    options = dict(data[data.source]) if data.source in data else {}
    if data.source == 'volumes':
        options['clip'] = seen_of_volumes(config)
    collecting = gc.isenabled()
    gc.disable()  # hundreds of thousands of small objects come to stay: to look among them for garbage takes longest
    try:
        return open_by_name(
            data.source,
            split,
            layout=layout,
            examination=looking or examination(config),
            frames=data.frames,
            fps=data.fps,
            seed=config.seed,
            options=options,
        )
    finally:
        if collecting:
            gc.enable()


def seen_of_volumes(config: ConfigDict) -> tuple[int, int, int]:
    """Returns the voxels (deep, high, wide) that a clip of a volume spans."""
    data = config.data
    return ((data.frames - 1) * data.stride + 1, *data.crop)


def make_source(config: ConfigDict, split: str, looking: Examination | None = None) -> Source:
    """Opens a split to train or evaluate on.

    Raises:
        ValueError: If a setting is wrong, data is missing, too many examples are bad, or one is where none may be.
    """
    data = config.data
    source = open_source(config, split, looking)
    where = f'the split {split!r} of data.source={data.source!r} (data.root={data.root}' + (
        f', data.csv={data.csv})' if data.csv else ')'
    )
    if source.bad:
        count = lost(source)
        line = judge_bad(config, where, source.bad, count=count, total=len(source) + count)
        warnings.warn(line, stacklevel=2)
    if not len(source):
        raise ValueError(f'{where} is empty')
    check_classes(config, split, source)
    return source


def lost(source: Source) -> int:
    """Returns the number of examples that were left out; a damaged file may have held many."""
    return getattr(source, 'lost', len(source.bad))


def judge_bad(
    config: ConfigDict, where: str, bad: Sequence[tuple[str, str]], *, count: int, total: int
) -> str:
    """Decides on examples that cannot be used; returns a line that names the first of them.

    Args:
        config: Whose `data.on_bad_video` and `data.max_bad` decide.
        where: What they are of, for the message.
        bad: (name, cause) of those that are known by name.
        count: How many they are.
        total: Examples, good and bad.

    Raises:
        ValueError: If a run must not go on with the others.
    """
    data = config.data
    named = ', '.join(f'{name} ({cause})' for name, cause in list(bad)[:5]) + (', …' if len(bad) > 5 else '')
    line = f'{count} of {total} examples of {where} cannot be used: {named}'
    check_it = 'python -m vivit_jax.data.check with the same options lists them'
    if data.on_bad_video == 'error':
        raise ValueError(f"{line}; data.on_bad_video='error' stops here, 'skip' leaves them out; {check_it}")
    # One is no sign of trouble, however few examples there are.
    if count > (max(data.max_bad * total, 1) if data.max_bad else 0):
        raise ValueError(
            f'{line}; these are {count / total:.1%}, more than data.max_bad={data.max_bad:g} allows; {check_it}'
        )
    return f'{line}; left out'


def check_classes(config: ConfigDict, split: str, source: Source) -> None:
    """Compares the classes that are set with those of the data; a ValueError tells both."""
    sizes, classes = head_sizes(config, source), len(source.class_names)
    if sum(sizes) != classes:
        raise ValueError(
            f'data.num_classes={sizes} but the {split!r} split has {classes} classes: set '
            f"--config.data.num_classes='({classes},)', or '()' to take what the data has"
        )


def head_sizes(config: ConfigDict, source: Source | None = None) -> tuple[int, ...]:
    """Returns the classes of each head: those set, else those of the source."""
    sizes = tuple(config.data.num_classes)
    if not sizes and source is not None:
        sizes = tuple(getattr(source, 'head_sizes', (len(source.class_names),)))
    if len(sizes) != len(config.data.heads):
        told = f'data.num_classes={sizes}' if config.data.num_classes else f'the data, of {sizes} classes,'
        raise ValueError(f'{told} does not go with data.heads={tuple(config.data.heads)}: one number a head')
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
        state_dtype=settings.state_dtype,
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
