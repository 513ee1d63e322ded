"""Trains every model on moving digits, one after another, and prints a table of what each costs and learns.

A step is a training step on a whole batch; memory is what XLA plans for it beside parameters, optimiser and batch.
Its time is the median of 10 of a compiled program; the models take three turns and the best counts, so that what
else the machine does is not held against one of them.

examples:
  python tools/compare_models.py --output=runs/comparison
  python tools/compare_models.py --config.training.epochs=1 --models factorised_encoder spatio_temporal
"""

import collections
import pathlib
import platform
import sys
import time

import jax
from ml_collections import ConfigDict

from vivit_jax import command_line, experiment, help_text, paths, train
from vivit_jax import config as config_module
from vivit_jax.dry_run import dry_run
from vivit_jax.models.cost import multiply_adds, parameters
from vivit_jax.models.vivit import ATTENTIONS

CONFIG = pathlib.Path(__file__).parent.parent / 'configs' / 'moving_digits.py'
SPLITS = ('test', 'test_shuffled', 'test_still')


def main() -> None:
    """Runs the command line."""
    parser = help_text.parser(__doc__)
    parser.add_argument('--models', nargs='+', choices=ATTENTIONS, default=ATTENTIONS, metavar='MODEL')
    parser.add_argument('--output', default='runs/comparison', metavar='DIR', help='workdirs and table.md')
    parsed, rest = parser.parse_known_args()
    overrides = command_line.overrides(parser, rest)
    try:
        folder = paths.here(parsed.output, '--output')
        configs = {
            model: config_module.load(str(CONFIG), {**overrides, 'model.attention': model})
            for model in parsed.models
        }
        for model in configs:
            if (folder / model / 'checkpoints').exists():
                raise ValueError(
                    f'{folder / model} holds a run already: a time is only measured on a fresh one; other --output'
                )
        steps = _steps(configs)
        rows = [_row(config, steps[model], folder / model) for model, config in configs.items()]
    except ValueError as error:
        sys.exit(f'error: {error}')
    device = jax.devices()[0]
    lines = [
        f'{jax.device_count()} x {device.device_kind}, {platform.processor() or platform.machine()}, '
        f'jax {jax.__version__}',
        '',
        '| model | parameters | MFLOPs a clip | step, ms | memory, MiB | test | shuffled | still | training, s |',
        '| --- | --- | --- | --- | --- | --- | --- | --- | --- |',
        *rows,
    ]
    table = '\n'.join(lines) + '\n'
    (folder / 'table.md').write_text(table)
    print(table)


def _steps(configs: dict[str, ConfigDict]) -> dict[str, dict[str, float]]:
    """Returns the best of three dry runs of each model."""
    turns = collections.defaultdict(list)
    for _ in range(3):
        for model, config in configs.items():
            turns[model].append(dry_run(config, steps=10))
    return {model: min(runs, key=lambda run: run['seconds_per_step']) for model, runs in turns.items()}


def _row(config: ConfigDict, step: dict[str, float], workdir: pathlib.Path) -> str:
    """Trains one model and returns its row."""
    began = time.perf_counter()
    report = train.train(config, workdir)
    seconds = time.perf_counter() - began
    model, clip = experiment.make_model(config), experiment.clip_shape(config)
    cells = [
        f'`{config.model.attention}`',
        f'{parameters(model, clip):,}',
        f'{multiply_adds(model, clip) / 1e6:.1f}',
        f'{1_000 * step["seconds_per_step"]:.0f}',
        f'{step["temporary_bytes"] / 2**20:.0f}',
        *(f'{report[split]["top_1"]:.3f}' for split in SPLITS),
        f'{seconds:.0f}',
    ]
    return f'| {" | ".join(cells)} |'


if __name__ == '__main__':
    main()
