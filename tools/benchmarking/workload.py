"""What is computed: a model, clips of one size, a batch; the same for all that are compared."""

import argparse
import dataclasses
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from vivit_jax import config as config_module
from vivit_jax import experiment
from vivit_jax.models.cost import multiply_adds, parameters
from vivit_jax.models.patterns import PATTERNS
from vivit_jax.models.vivit import ATTENTIONS, CHOICES, ViViT, create_model

# A training step costs a pass forward and, twice as much, one backward; a multiply-add is two operations.
FORWARD_FLOPS, TRAIN_FLOPS = 2, 6
# Options that a configuration stands in for.
OF_MODEL = (
    'attention',
    'size',
    'layers',
    'heads',
    'width',
    'mlp',
    'frames',
    'crop',
    'tubelet',
    'classes',
    'dtype',
)
# Of a configuration, what is measured at these values alone: the reference's and PyTorch's steps have nothing else.
MEASURED = {
    'optimizer.name': 'momentum',
    'optimizer.state_dtype': 'float32',
    'optimizer.train': 'all',
    'optimizer.freeze': '',
    'training.ema_decay': 0.0,
    'training.accumulate': 1,
}
# And those that say how ours computes it, not what.
OF_OURS = ('attention_backend', 'scan_layers', 'remat')


@dataclasses.dataclass(frozen=True)
class Workload:
    """A model and what it is fed.

    Attributes:
        model: Fields of `create_model`.
        num_classes: Classes.
        clip: `(frames, height, width, channels)`.
        batch: Clips of a step.
    """

    model: dict[str, Any]
    num_classes: int
    clip: tuple[int, int, int, int]
    batch: int

    @classmethod
    def of_json(cls, values: dict[str, Any]) -> 'Workload':
        """Returns what `dataclasses.asdict` wrote, after a way through JSON."""
        return cls(values['model'], values['num_classes'], tuple(values['clip']), values['batch'])

    @classmethod
    def of_config(cls, config: ConfigDict, batch: int) -> 'Workload':
        """Returns what a configuration trains on one device, with its own batch where `batch` is 0.

        Raises:
            ValueError: If the configuration does not name its classes.
        """
        if not config.data.num_classes:
            raise ValueError("data.num_classes is not set: there is no data to count them in; e.g. '(10,)'")
        return cls(
            dict(config.model),
            sum(experiment.head_sizes(config)),
            experiment.clip_shape(config),
            batch or config.training.batch_size,
        )

    @property
    def dtype(self) -> str:
        """Returns the compute dtype."""
        return str(self.model.get('dtype', 'float32'))

    def make_model(self, **changes: Any) -> ViViT:
        """Returns our model, with some of its fields changed.

        Raises:
            ValueError: If the settings exclude each other.
        """
        return create_model(self.num_classes, **{**self.model, **changes})

    def changed(self, **fields: Any) -> 'Workload':
        """Returns the same with other fields of the model."""
        return dataclasses.replace(self, model={**self.model, **fields})

    def flops(self) -> dict[str, float]:
        """Returns the floating-point operations of a step forward and of a training step, counted by formula."""
        forward, train = (
            self.batch * multiply_adds(self.make_model(), self.clip, logits_alone=True, train=train)
            for train in (False, True)
        )
        return {'forward': FORWARD_FLOPS * forward, 'train': TRAIN_FLOPS * train}

    def parameters(self) -> int:
        """Returns the number of parameters, counted by formula."""
        return parameters(self.make_model(), self.clip)

    def clips(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns noise: clips `[b t h w c]` in [-1, 1], float32, and a class of each, int32."""
        random = np.random.default_rng(0)
        video = random.uniform(-1, 1, (self.batch, *self.clip)).astype(np.float32)
        return video, random.integers(0, self.num_classes, self.batch).astype(np.int32)

    def __str__(self) -> str:
        """Returns a line for people."""
        model, (frames, height, width, _) = self.make_model(), self.clip
        shown = {name: self.model.get(name) for name in OF_OURS}
        how = ', '.join(f'{name}={value}' for name, value in shown.items() if value is not None)
        return (
            f'{model.attention}, {model.num_layers} layers, {model.num_heads} heads, width {model.width}, '
            f'MLP {model.mlp_dim}, {self.parameters() / 1e6:.1f} M parameters; batch {self.batch} of {frames} frames '
            f'of {height}x{width}, tubelet {"x".join(map(str, model.tubelet))}, {self.num_classes} classes, '
            f'{self.dtype}' + (f'; {how}' if how else '')
        )


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options that say what is computed."""
    what = parser.add_argument_group('what is computed')
    what.add_argument(
        '--config', metavar='FILE', help='of an experiment, with keys as --config.KEY=VALUE; or:'
    )
    what.add_argument('--attention', choices=ATTENTIONS, metavar='MODEL', help='spatio_temporal unless given')
    what.add_argument('--size', choices=config_module.SIZES, help='of the model (S)')
    for name in ('layers', 'heads', 'width', 'mlp'):
        what.add_argument(f'--{name}', type=at_least_one, metavar='N', help="instead of the size's")
    what.add_argument('--frames', type=at_least_one, metavar='N', help='of a clip (16)')
    what.add_argument('--crop', type=at_least_one, metavar='N', help='pixels high and wide (112)')
    what.add_argument('--tubelet', type=_tubelet, metavar='TxHxW', help='2x16x16')
    what.add_argument('--classes', type=at_least_one, metavar='N', help='400')
    what.add_argument('--dtype', choices=CHOICES['dtype'], help='of the computation (float32)')
    what.add_argument('--batch', type=at_least_one, metavar='N', help="clips of a step (2, or the config's)")
    how = parser.add_argument_group('how ours computes it (as the model does by default)')
    how.add_argument('--attention-backend', metavar='NAME', help='auto, xla, blockwise, cudnn or flash')
    how.add_argument(
        '--scan-layers', action=argparse.BooleanOptionalAction, help='the layers in a scan, or in a loop'
    )
    how.add_argument('--remat', metavar='NAME', help='none, block, attention or dots')


def of_options(options: argparse.Namespace, overrides: dict[str, str]) -> Workload:
    """Returns what the options of `add_options` say.

    Args:
        options: The options.
        overrides: Keys of the configuration, of `--config.KEY=VALUE`.

    Raises:
        ValueError: If the settings exclude each other, or the configuration cannot be read.
    """
    given = [name for name in OF_MODEL if getattr(options, name) is not None]
    if options.config:
        if given:
            raise ValueError(
                f'--{given[0]} does not go with --config: say it by a key, as --config.model.width=384'
            )
        workload = Workload.of_config(config_module.load(options.config, overrides), options.batch or 0)
    elif overrides:
        raise ValueError(f'--config.{next(iter(overrides))} needs --config=FILE')
    else:
        layers, heads, width, mlp = config_module.SIZES[options.size or 'S']
        attention = options.attention or 'spatio_temporal'
        model = {
            'attention': attention,
            'num_layers': options.layers or layers,
            'num_heads': options.heads or heads,
            'width': options.width or width,
            'mlp_dim': options.mlp or mlp,
            'tubelet': options.tubelet or (2, 16, 16),
            'classifier': 'token' if PATTERNS[attention].cls else 'gap',
            'dtype': options.dtype or 'float32',
        }
        crop = options.crop or 112
        clip = (options.frames or 16, crop, crop, 3)
        workload = Workload(model, options.classes or 400, clip, options.batch or 2)
    return checked(workload.changed(**ours_of(options)))


def instead(options: argparse.Namespace, overrides: dict[str, str]) -> str:
    """Returns a line that tells what a configuration trains with and the benchmark does not; '' if nothing."""
    if not options.config:
        return ''
    config = config_module.load(options.config, overrides)
    given = {key: config[key.split('.')[0]][key.split('.')[1]] for key in MEASURED}
    others = [
        f'{key}={value!r} instead of {given[key]!r}' for key, value in MEASURED.items() if given[key] != value
    ]
    return f'measured with {", ".join(others)}: the run itself takes other memory and time' if others else ''


def ours_of(options: argparse.Namespace) -> dict[str, Any]:
    """Returns the fields of the model that options set: how ours computes, not what."""
    ours = {name: getattr(options, name) for name in OF_OURS}
    return {name: value for name, value in ours.items() if value is not None}


def checked(workload: Workload) -> Workload:
    """Returns the workload; raises a ValueError where its settings or the clip do not go together."""
    workload.flops()
    return workload


def at_least_one(text: str) -> int:
    """Reads a whole number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f'{text!r} must be a whole number of at least 1')
    return int(text)


def _tubelet(text: str) -> tuple[int, ...]:
    sizes = text.split('x')
    if len(sizes) != 3:
        raise argparse.ArgumentTypeError(f'{text!r} must be three sizes, as 2x16x16')
    return tuple(at_least_one(size) for size in sizes)
