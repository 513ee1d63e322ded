"""Takes over a ViViT that Scenic trained: its checkpoint and its configuration become one of our checkpoints.

The configuration tells what the arrays cannot (Model 1 or 4, the order of attention, pooling, the clip); where both
tell and differ, the checkpoint is right and the difference is printed.

examples:
  python tools/convert_scenic.py --checkpoint=vivit_b/checkpoint --config=vivit_b.py --output=runs/scenic
  python tools/convert_scenic.py --checkpoint=FOLDER_OF_CHECKPOINTS --config=config.json --output=runs/scenic

then:
  python -m vivit_jax.main --config=runs/scenic/config.json --workdir=runs/scenic --mode=eval --config.data.root=ROOT
"""

import pathlib
import runpy
import sys
import traceback
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from vivit_jax import formats, help_text, init_from, json_files, paths
from vivit_jax.config import default_config
from vivit_jax.formats import own, scenic
from vivit_jax.formats.account import as_is
from vivit_jax.telling.printable import printable


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    parser = help_text.parser(__doc__)
    parser.add_argument('--checkpoint', required=True, metavar='FILE_OR_FOLDER', help="Scenic's checkpoint")
    parser.add_argument('--config', required=True, metavar='FILE', help="Scenic's config.py, or as JSON")
    parser.add_argument('--output', required=True, metavar='DIR', help='a new folder')
    parsed = parser.parse_args(arguments)
    try:
        config = pathlib.Path(paths.here(parsed.config, '--config'))
        convert(parsed.checkpoint, config, paths.path(parsed.output))
    except (ValueError, OSError, ImportError) as error:
        print(printable(f'error: {error}'), file=sys.stderr)
        return 2
    return 0


def convert(checkpoint: str, config_file: pathlib.Path, folder: paths.Path) -> None:
    """Converts, writes and tells.

    Args:
        checkpoint: Scenic's checkpoint, a file or a folder.
        config_file: Scenic's configuration.
        folder: Where to.

    Raises:
        ValueError: One line: what cannot be read, or does not go together.
    """
    configured = settled(formats.load(checkpoint, kind='scenic'), config_file)
    config, account = configured.config, as_is(configured.weights)
    # What Scenic's training started from is in the weights now.
    values = {**config.to_dict(), 'init_from': default_config().init_from.to_dict()}
    own.save(folder, configured.weights.params, values, list(configured.weights.class_names))
    written = init_from.write_account(account, folder)
    print(*account.lines(), sep='\n')
    if configured.unknown:
        print(f'not understood of {config_file}, and left out: {", ".join(configured.unknown)}')
    print(f'written to {folder}; every array by itself: {written}')
    print(
        f'next: python -m vivit_jax.main --config={folder / "config.json"} --workdir={folder} --mode=eval '
        '--config.data.root=...'
    )


def settled(weights: formats.Weights, config_file: pathlib.Path) -> scenic.Configured:
    """Brings weights and their configuration together; a ValueError names the configuration's file."""
    scenic_config = read_config(config_file)
    try:
        return scenic.with_config(weights, scenic_config)
    except ValueError as error:
        raise ValueError(f'{config_file}: {error}') from error


def read_config(path: pathlib.Path) -> Mapping[str, Any] | ConfigDict:
    """Reads a configuration of Scenic's: what its `get_config()` returns, or a saved one in JSON.

    Raises:
        ValueError: One line: what is wrong with the file, and where.
    """
    if not path.is_file():
        raise ValueError(f'{path}: does not exist')
    config = json_files.read(path) if path.suffix == '.json' else _run(path)
    if not isinstance(config, Mapping | ConfigDict):
        raise ValueError(f'{path}: gives a {type(config).__name__} instead of a configuration')
    return config


def _run(path: pathlib.Path) -> Any:
    """Returns what the `get_config()` of a Python file returns."""
    try:
        get_config = runpy.run_path(str(path)).get('get_config')
        if get_config is None:
            raise ValueError('defines no get_config()')
        return get_config()
    except ModuleNotFoundError as error:
        raise ValueError(
            f'{path}: imports {error.name}, which is not installed: take that import out, or save the configuration '
            'as JSON where it is'
        ) from error
    except SyntaxError as error:
        raise ValueError(
            f'{path}, line {error.lineno}: invalid syntax: {(error.text or "").strip()}'
        ) from error
    except Exception as error:
        lines = [
            frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)
        ]
        words = ' '.join(str(error).split())
        raise ValueError(f'{path}{f", line {lines[-1]}" if lines else ""}: {words}') from error


if __name__ == '__main__':
    sys.exit(main())
