"""Writes a model for PyTorch: as a folder of Hugging Face where it fits, else with a file that runs it.

CHECKPOINT is anything that can be read: a workdir or one of its checkpoints, a checkpoint of Scenic, a ViT of
Google, timm or Hugging Face. The formats are:
  hugging_face  config.json, model.safetensors, preprocessor_config.json, for VivitForVideoClassification of
                transformers: the spatio-temporal model with a class token, tubelets and a head; or for
                TimesformerForVideoClassification: divided attention and positions as TimeSformer has them
  vivit_torch   config.json, model.safetensors, vivit_torch.py, for any model: plain PyTorch in one file

Where PyTorch is installed, both models run on random clips and the largest difference of their outputs is printed.

examples:
  python tools/convert_to_pytorch.py runs/kinetics400_fe --output=fe_torch
  python tools/convert_to_pytorch.py runs/kinetics400/checkpoints/5000 --output=vivit --format=hugging_face
  python tools/convert_to_pytorch.py scenic_checkpoint --output=DIR --no-check

exit code: 0; 1 if the outputs differ by more than 1e-4 (for sums, gsp: of the largest); 2 for mistakes.
"""

import argparse
import dataclasses
import importlib
import pathlib
import re
import runpy
import sys
from collections.abc import Callable, Sequence
from typing import Any

import flax.errors
import jax
import jax.numpy as jnp
import numpy as np

from vivit_jax import help_text, paths
from vivit_jax.formats import Weights, containers, hugging_face, load, timesformer, vivit_torch
from vivit_jax.formats.account import as_is
from vivit_jax.models.vivit import create_model
from vivit_jax.telling.printable import printable

Clip = tuple[int, int, int, int]

FORMATS = ('auto', 'hugging_face', 'vivit_torch')
TOLERANCE = 1e-4
ACCOUNT = 'conversion.json'
INSTALL = "pip install 'vivit_jax[torch]'"
USE = {
    'hugging_face': """\
from transformers import {model}, {processor}
model = {model}.from_pretrained({folder!r})
processor = {processor}.from_pretrained({folder!r})  # frames -> pixels in [-1, 1]""",
    'vivit_torch': """\
import sys; sys.path.insert(0, {folder!r})
import vivit_torch
model = vivit_torch.load({folder!r})  # model(video): [b t h w c], pixels in [-1, 1]""",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    parser = help_text.parser(__doc__)
    parser.add_argument('checkpoint', metavar='CHECKPOINT', help='a file or folder of weights')
    parser.add_argument(
        '--output', required=True, metavar='DIR', help='may hold what this command wrote before'
    )
    parser.add_argument('--format', default='auto', choices=FORMATS, help='auto: hugging_face where it fits')
    parser.add_argument(
        '--clip', type=_clip, metavar='TxHxW', help='frames and pixels, where the file does not tell'
    )
    parser.add_argument(
        '--num_heads', type=int, metavar='N', help='attention heads, where the file does not tell'
    )
    parser.add_argument('--no-check', dest='check', action='store_false', help='do not compare the outputs')
    options = parser.parse_args(arguments)
    try:
        folder = paths.here(options.output, '--output')
        weights = load(options.checkpoint, options.num_heads)
        clip, short_side = clip_of(weights, options.clip)
        chosen = choose(weights, options.format, clip)
        refuse_foreign(folder, chosen, paths.path(options.checkpoint))
        write(chosen, folder, weights, clip, short_side)
        return check(chosen, folder, weights, clip) if options.check else 0
    except (ValueError, ImportError, OSError) as error:
        print(printable(f'error: {error}'), file=sys.stderr)
        return 2


def _clip(text: str) -> tuple[int, int, int]:
    if not re.fullmatch(r'[1-9]\d*(x[1-9]\d*){2}', text):
        raise argparse.ArgumentTypeError(f'{text!r}: write frames, height and width as 32x224x224')
    frames, height, width = (int(size) for size in text.split('x'))
    return frames, height, width


def clip_of(weights: Weights, said: tuple[int, int, int] | None) -> tuple[Clip, int | None]:
    """Returns the size of the clips that a model takes, and to what their short side was resized before cropping.

    Args:
        weights: The model.
        said: Frames, height and width, where people say them.

    Raises:
        ValueError: If it cannot be told, or does not go with the parameters.
    """
    channels = weights.params['embedding']['kernel'].shape[-2]
    # Checkpoints of this package tell it; of others it follows from the positions.
    meta = containers.read_json(paths.path(weights.path) / 'meta' / 'metadata')
    data = meta['config']['data'] if meta else {}
    if said is None and meta:
        said = (data['frames'], *data['crop'])
    if said is None and weights.grid is not None:
        t, h, w = (size * tube for size, tube in zip(weights.grid, weights.model['tubelet'], strict=True))
        said = (t, h, w)
    if said is None:
        raise ValueError(
            f'{weights.path}: does not tell the size of its clips: give it, as --clip=32x224x224'
        )
    clip = (*said, channels)
    model = create_model(weights.num_classes, **weights.model)
    try:
        jax.eval_shape(model.apply, {'params': weights.params}, jnp.zeros((1, *clip)))
    except (ValueError, flax.errors.FlaxError) as error:
        text = str(error).split('. (')[0]
        raise ValueError(f'{weights.path}: is not for clips of {clip} (t, h, w, c): {text}') from None
    return clip, data['short_side'] if meta else None


def is_timesformer(weights: Weights) -> bool:
    """Tells whether Hugging Face's TimeSformer is closer to a model than its ViViT."""
    model = create_model(weights.num_classes, **weights.model)
    return model.attention == 'divided' or model.position_embedding == 'learned_space_time'


def choose(weights: Weights, wanted: str, clip: Clip) -> str:
    """Returns the format to write.

    Raises:
        ValueError: If it is Hugging Face's that is wanted, and the model is not one of theirs.
    """
    problem = timesformer.misfit(weights, clip) if is_timesformer(weights) else hugging_face.misfit(weights)
    if wanted == 'hugging_face' and problem:
        raise ValueError(
            f'--format=hugging_face does not fit {weights.path}: {problem}; take --format=vivit_torch'
        )
    if wanted == 'auto':
        if problem:
            print(f'format vivit_torch: {problem}')
        return 'vivit_torch' if problem else 'hugging_face'
    return wanted


def refuse_foreign(folder: pathlib.Path, chosen: str, source: paths.Path) -> None:
    """Sees to it that nothing is overwritten, or taken for part of the model, that this command did not write.

    Raises:
        ValueError: If the folder holds other files, or the weights themselves.
    """
    if not folder.exists():
        return
    if not folder.is_dir():
        raise ValueError(f'--output={folder} is a file: give a folder')
    if not paths.is_remote(source) and folder.samefile(source if source.is_dir() else source.parent):
        raise ValueError(f'--output={folder} is where the weights come from: give another folder')
    own = {
        'hugging_face': ('config.json', 'model.safetensors', 'preprocessor_config.json', ACCOUNT),
        'vivit_torch': ('config.json', 'model.safetensors', 'vivit_torch.py', '__pycache__', ACCOUNT),
    }
    if others := sorted(file.name for file in folder.iterdir() if file.name not in own[chosen]):
        raise ValueError(
            f'--output={folder} holds other files ({", ".join(others[:4])}): give a new folder, or an empty one'
        )


def write(chosen: str, folder: pathlib.Path, weights: Weights, clip: Clip, short_side: int | None) -> None:
    """Writes the folder and says what is in it and how to use it."""
    if chosen == 'hugging_face':
        family = timesformer if is_timesformer(weights) else hugging_face
        names = family.save(folder, weights, clip, short_side)
    else:
        names = vivit_torch.save(folder, weights, clip)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(weights.params))
    account = as_is(weights)
    containers.write_json(folder / ACCOUNT, account.to_json())
    print(*account.lines(), sep='\n')
    print(f'written to {folder}: {", ".join(names)}')
    print(f'{parameters:,} parameters, for clips of {clip} (t, h, w, c)')
    if chosen == 'hugging_face' and clip[1] != clip[2]:
        print('note: image_size is [height, width], which needs transformers 5')
    words = {'folder': str(folder)}
    if chosen == 'hugging_face':
        words['model'] = containers.read_json(folder / 'config.json')['architectures'][0]
        words['processor'] = containers.read_json(folder / 'preprocessor_config.json')['image_processor_type']
    print(f'\n{USE[chosen].format(**words)}\n')


def check(chosen: str, folder: pathlib.Path, weights: Weights, clip: Clip) -> int:
    """Runs the model here and in PyTorch on random clips, and says how far apart the outputs are.

    Returns:
        The exit code.
    """
    packages = ('torch', 'transformers') if chosen == 'hugging_face' else ('torch',)
    if missing := [name for name in packages if not _installed(name)]:
        how = INSTALL + (' transformers' if 'transformers' in missing else '')
        print(f'not checked: {" and ".join(missing)} not installed: {how}')
        return 0
    weights, head = with_random_head(weights)
    load_model = hugging_face_model if chosen == 'hugging_face' else vivit_torch_model
    theirs = load_model(folder, head)
    # In float32, whatever the model was trained in.
    model = create_model(weights.num_classes, **{**weights.model, 'dtype': 'float32'})
    ours = jax.jit(lambda params, video: model.apply({'params': params}, video)[0])
    random = np.random.default_rng(0)
    differences, sizes = [], []
    for _ in range(2):  # one by one, as long clips need much memory
        video = random.uniform(-1, 1, (1, *clip)).astype(np.float32)
        with jax.default_matmul_precision('highest'):
            expected = np.asarray(ours(weights.params, video))
        differences.append(np.abs(theirs(video) - expected).max())
        sizes.append(np.abs(expected).max())
    # NumPy's maximum, unlike Python's, keeps NaN, with which no comparison holds.
    difference, largest = np.max(differences), np.max(sizes)
    of = 'outputs' if head is None else 'outputs of a random head in place of zeros'
    words = f'largest difference {difference:.1e} of {of} up to {largest:.2g}'
    # A sum over all tokens is as much larger than a mean as its rounding.
    if difference <= TOLERANCE * (max(1.0, largest) if model.classifier == 'gsp' else 1.0):
        print(f'checked: {words}')
        return 0
    print(f'error: PyTorch computes something else: {words}', file=sys.stderr)
    return 1


def with_random_head(weights: Weights) -> tuple[Weights, np.ndarray | None]:
    """Gives a model whose head is all zeros, as of one not yet trained, a random one: zeros hide every difference.

    Returns:
        The weights to compare, and the head's kernel `[d k]`; None where it is the model's own.
    """
    head = weights.params.get('output_projection')
    if head is None or np.any(head['kernel']):
        return weights, None
    shape = head['kernel'].shape
    kernel = (np.random.default_rng(1).normal(size=shape) / np.sqrt(shape[0])).astype(np.float32)
    params = {**weights.params, 'output_projection': {**head, 'kernel': kernel}}
    return dataclasses.replace(weights, params=params), kernel


def _installed(name: str) -> bool:
    try:
        importlib.import_module(name)
    except ImportError:
        return False
    return True


def vivit_torch_model(
    folder: pathlib.Path, head: np.ndarray | None = None
) -> Callable[[np.ndarray], np.ndarray]:
    """Returns what a folder with `vivit_torch.py` computes, with another kernel of the head where one is given."""
    import torch

    model = runpy.run_path(str(folder / 'vivit_torch.py'))['load'](folder)
    if head is not None:
        model.classifier.weight.data = torch.from_numpy(head.T.copy())

    def run(video: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return model(torch.from_numpy(video)).numpy()

    return run


def hugging_face_model(
    folder: pathlib.Path, head: np.ndarray | None = None
) -> Callable[[np.ndarray], np.ndarray]:
    """Returns what a folder of Hugging Face computes, with another kernel of the head where one is given.

    Raises:
        ValueError: If transformers misses parameters in it, or finds others.
    """
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()
    name = containers.read_json(folder / 'config.json')['architectures'][0]
    loaded: Any = getattr(transformers, name).from_pretrained(folder, output_loading_info=True)
    model, told = loaded
    if wrong := {name: keys for name, keys in told.items() if keys}:
        raise ValueError(f'{folder}: transformers reports {wrong}')
    if head is not None:
        model.classifier.weight.data = torch.from_numpy(head.T.copy())

    def run(video: np.ndarray) -> np.ndarray:
        pixels = torch.from_numpy(np.moveaxis(video, -1, -3).copy())
        with torch.no_grad():
            return model(pixel_values=pixels).logits.numpy()

    return run


if __name__ == '__main__':
    sys.exit(main())
