"""Turns trained weights of any known format into a checkpoint to start from, and tells what became of every array.

With --config they go into that model, as training with --config.init_from.path=FILE would put them; without, they
stay the model that they are (an image ViT is Model 1 on one frame).

examples:
  python tools/convert_vit.py vit_b16.npz --config=configs/kinetics400_fe.py --output=runs/vit_b16_fe
  python tools/convert_vit.py vit_l16.npz --config=configs/ssv2_fe.py --config.init_from.kernel=average --output=DIR
  python tools/convert_vit.py timm_folder --config.init_from.num_heads=12 --output=runs/timm
  python tools/convert_vit.py huggingface_vivit_folder --output=runs/vivit

then:
  python -m vivit_jax.main --config=configs/kinetics400_fe.py --config.init_from.path=runs/vit_b16_fe …

The keys of config.init_from (vivit_jax/config.py) choose how; docs/weights.md explains them.
"""

import pathlib
import shlex
import sys
import time
import warnings
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from vivit_jax import command_line, experiment, help_text, init_from, paths
from vivit_jax import config as config_module
from vivit_jax.formats import Weights, own
from vivit_jax.formats.account import Account, as_is
from vivit_jax.models.vivit import create_model
from vivit_jax.telling.printable import printable, warning_line


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    warnings.formatwarning = warning_line
    parser = help_text.parser(__doc__)
    parser.add_argument('path', metavar='FILE', help='a file or folder of weights')
    parser.add_argument('--output', required=True, metavar='DIR', help='a new folder')
    parser.add_argument('--config', metavar='FILE[:ARGUMENT]', help='the model to put them into')
    parsed, rest = parser.parse_known_args(arguments)
    overrides = command_line.overrides(parser, rest)
    try:
        convert(parsed.path, parsed.config, overrides, paths.path(parsed.output))
    except (ValueError, OSError, ImportError) as error:
        print(printable(f'error: {error}'), file=sys.stderr)
        return 2
    return 0


def convert(path: str, spec: str | None, overrides: dict[str, str], folder: paths.Path) -> Account:
    """Converts, writes and tells.

    Args:
        path: The weights.
        spec: A config file for the model to put them into; None keeps them as they are.
        overrides: Keys of the configuration.
        folder: Where to.
    """
    began = time.perf_counter()
    if spec is None and (wrong := [key for key in overrides if not key.startswith('init_from.')]):
        raise ValueError(
            f'--config.{wrong[0]} is for a model to put the weights into: give --config=FILE, too'
        )
    base = str(pathlib.Path(__file__).parent.parent / 'configs' / 'base.py')
    config = config_module.load(spec or base, {**overrides, 'init_from.path': path})
    weights = init_from.read(config)
    if spec is None:
        config, params, account = own_config(config, weights), weights.params, as_is(weights)
    else:
        config = init_from.adopt(config, weights.model)
        experiment.check(config)
        model = create_model(sum(config.data.num_classes), **config.model)
        video = jnp.zeros((1, *experiment.clip_shape(config)))
        fresh = jax.device_get(jax.jit(model.init)(jax.random.key(config.seed), video)['params'])
        params, account = init_from.initialise(config, fresh, weights)
    own.save(folder, params, config.to_dict(), list(weights.class_names) if spec is None else [])
    written = init_from.write_account(account, folder)
    print(*account.lines(), sep='\n')
    for name in init_from.BROUGHT:
        print(f'model.{name}={config.model[name]!r} comes with the weights')
    print(f'written to {folder} in {time.perf_counter() - began:.1f} s; every array by itself: {written}')
    same = [
        f'--config.{key}={shlex.quote(value)}' for key, value in overrides.items() if 'init_from.' not in key
    ]
    options = ' '.join([f'--config={spec or "CONFIG"}', *same, f'--config.init_from.path={folder}'])
    print(f'next: python -m vivit_jax.main {options} --config.data.root=ROOT')
    return account


def own_config(config: ConfigDict, weights: Weights) -> ConfigDict:
    """Returns a configuration for the model that the weights are."""
    if weights.grid is None:
        raise ValueError(
            f'{weights.path}: the size of its clips cannot be told from the file: say into which model it goes, with '
            '--config (or tools/convert_scenic.py, with its own configuration)'
        )
    config = ConfigDict(config.to_dict())
    config.name = pathlib.PurePath(config.init_from.path).stem
    config.model.update(weights.model)
    frames, *crop = (size * tube for size, tube in zip(weights.grid, weights.model['tubelet'], strict=True))
    config.data.frames, config.data.crop = frames, tuple(crop)
    config.data.channels = weights.params['embedding']['kernel'].shape[-2]
    config.data.num_classes = (weights.num_classes,) if weights.num_classes else ()
    config_module.check(config)
    return config.lock()


if __name__ == '__main__':
    sys.exit(main())
