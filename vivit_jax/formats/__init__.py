"""Weights of others: one file a format, recognised by content, turned into ViViT's parameters."""

import dataclasses
import os
import pathlib
import re
from collections.abc import Callable, Sequence
from typing import Any

from vivit_jax import nearest, paths
from vivit_jax.formats import (
    big_vision,
    containers,
    hugging_face,
    own,
    scenic,
    timesformer,
    timm,
    vit_npz,
    vivit_torch,
)
from vivit_jax.formats.weights import KINDS, Conversion, Weights, shortened_line

__all__ = ['KINDS', 'Weights', 'load']

Convert = Callable[[Conversion, dict[str, Any], int | None], Weights]

# Ends the name of the file that tells in which of several parts an array is.
INDEX = '.index.json'
MOST_HEADS = 2**16

# What reads each kind.
CONVERTERS: dict[str, Convert] = {
    'vivit_jax': vivit_torch.convert,
    'scenic': scenic.convert,
    'vit_npz': vit_npz.convert,
    'big_vision': big_vision.convert,
    'hf_vit': hugging_face.convert_vit,
    'hf_vivit': hugging_face.convert_vivit,
    'hf_timesformer': timesformer.convert_hugging_face,
    'timesformer': timesformer.convert_original,
    'timm': timm.convert,
}


def load(
    path: str | os.PathLike[str],
    num_heads: int | None = None,
    *,
    kind: str = 'auto',
    allow_unused: Sequence[str] = (),
) -> Weights:
    """Reads weights of any known format, which is told by their content.

    Args:
        path: A file, or a folder: of Hugging Face or timm (`model.safetensors`, `config.json`), of Scenic
            (`checkpoint_<step>`), or of this package (a workdir, or one of its `checkpoints/<step>`).
        num_heads: Attention heads, for formats that do not tell (a fused projection, as timm's).
        kind: One of `KINDS` to insist on; 'auto' takes what it is.
        allow_unused: Patterns, as `head*`, of arrays that may be left out without a known reason.

    Returns:
        The parameters with the model they belong to, and the account of every array of the file.

    Raises:
        ValueError: One line: what is missing or damaged, what the file seems to be, or which arrays of it have no
            place in the model.
        ImportError: If the file needs a package that is not installed; one line that names the extra.
    """
    path = paths.path(path)
    if kind not in ('auto', *KINDS):
        raise ValueError(f'kind {kind!r} of {path}: choose auto or one of {", ".join(KINDS)}')
    if not path.exists():
        raise ValueError(f'{path}: does not exist{nearest.hint(path)}')
    if own.is_checkpoint(path):
        weights = own.load(path)
        _insist(kind, weights.kind, path)
        return weights
    if (path / 'checkpoints').is_dir():
        raise ValueError(f'{path}: holds no checkpoint yet{nearest.hint(path)}')
    if paths.is_remote(path):
        return _of_store(path, num_heads, kind=kind, allow_unused=allow_unused)
    path = pathlib.Path(path)
    if scenic.is_orbax(path):
        _insist(kind, 'scenic', path)
        return _convert(Conversion(str(path), 'scenic', scenic.read_orbax(path), allow_unused), {}, num_heads)
    file = find_file(path)
    sort, arrays = containers.read_parts(file) if file.name.endswith(INDEX) else containers.read(file)
    sidecar = containers.read_json(file.parent / 'config.json')
    found = recognise(arrays, sidecar, sort)
    if found is None:
        some = ', '.join(list(arrays)[:3]) or 'no arrays at all'
        raise ValueError(
            f'{file}: is {containers.NAMES[sort]}, but of no known model (it has {some}); known are '
            f'{", ".join(KINDS)}'
        )
    _insist(kind, found, file)
    return _convert(Conversion(str(file), found, arrays, allow_unused), sidecar, num_heads)


def _convert(conversion: Conversion, sidecar: dict[str, Any], num_heads: int | None) -> Weights:
    """Converts arrays; whatever a format's rules stumble over in a file that has others is told in one line."""
    file, kind = conversion.path, conversion.kind
    if num_heads is not None and not 0 < num_heads <= MOST_HEADS:
        raise ValueError(f'{file}: num_heads={num_heads}: must be from 1 to {MOST_HEADS}')
    try:
        return CONVERTERS[kind](conversion, sidecar, num_heads)
    except ImportError:
        raise
    except MemoryError as error:
        raise ValueError(f'{file}: does not fit into memory') from error
    except Exception as error:
        words = ' '.join(str(error).split())
        if type(error) is not ValueError:  # not the shapes or settings of such a file at all
            words = (
                f'cannot be read as {kind}: its arrays or its config.json are not as such files are '
                f'({type(error).__name__}: {words[:120]})'
            )
        if file in words or 'allow_unused' in words:
            raise ValueError(shortened_line(words)) from error
        raise ValueError(f'{file}: {shortened_line(words)}') from error


def _of_store(path: paths.Path, num_heads: int | None, **options: Any) -> Weights:
    """Reads weights of a store from a copy, whose name nobody gets to see."""
    is_folder = path.is_dir()
    if is_folder:
        copying = paths.local(path)
    else:
        parts = containers.read_json(path).get('weight_map') if path.name.endswith(INDEX) else None
        wanted = {path.name, *(map(str, parts.values()) if isinstance(parts, dict) else ())}
        # What tells more of it lies beside it.
        copying = paths.local_files(path.parent, lambda name: name in wanted or name.endswith('.json'))
    with copying as copy:
        file = copy if is_folder else copy / path.name
        try:
            weights = load(file, num_heads, **options)
        except (ValueError, ImportError) as error:
            raise type(error)(str(error).replace(str(file.parent), str(path.parent))) from error
    return dataclasses.replace(weights, path=weights.path.replace(str(file.parent), str(path.parent)))


def _insist(wanted: str, found: str, path: paths.Path) -> None:
    if wanted not in ('auto', found):
        raise ValueError(f'{path}: is {found}, not {wanted}')


def find_file(path: pathlib.Path) -> pathlib.Path:
    """Returns the one file of weights of a folder; of Scenic's numbered checkpoints the latest.

    Raises:
        ValueError: If there is none, or more than one.
    """
    if path.is_file():
        return path
    wholes = ('model.safetensors', 'pytorch_model.bin')
    for name in (*wholes, *(f'{name}{INDEX}' for name in wholes)):
        if (path / name).is_file():
            return path / name
    numbered = [file for file in path.glob('checkpoint*') if file.is_file()]
    if numbered:
        return max(numbered, key=lambda file: int((re.findall(r'\d+', file.name) or ['0'])[-1]))
    files = sorted(file for file in path.iterdir() if file.suffix in containers.SUFFIXES)
    if len(files) > 1:
        # Recorded inputs or pictures beside a model are no second one; npz tell their names without being read.
        models = [file for file in files if file.suffix == '.npz' and _is_model(file)]
        files = models if len(models) == 1 else files
    if len(files) == 1:
        return files[0]
    there = ', '.join(file.name for file in files or sorted(path.iterdir())) or 'nothing'
    raise ValueError(
        f'{path}: holds {"several files" if files else "no file"} of weights ({there}): name one'
    )


def _is_model(file: pathlib.Path) -> bool:
    try:
        sort, arrays = containers.read(file)
    except ValueError:
        return False
    return recognise(arrays, {}, sort) is not None


def recognise(arrays: containers.Arrays, sidecar: dict[str, Any], sort: str) -> str | None:
    """Tells the kind of weights by the names of their arrays; None if they are of no known model.

    Args:
        arrays: The file's arrays.
        sidecar: The `config.json` beside it, empty where there is none.
        sort: The sort of file, see `containers.read`.
    """
    names = '\n'.join(arrays)

    def has(pattern: str) -> bool:
        return re.search(f'^{pattern}$', names, re.MULTILINE) is not None

    if sidecar.get('model_type') == 'vivit_jax':
        return 'vivit_jax'
    if has(r'(.*\.)?embeddings\.patch_embeddings\.projection\.weight'):
        if has(r'.*\.attention\.qkv\.weight'):  # fused, as in no other
            return 'hf_timesformer'
        name = next(name for name in arrays if name.endswith('patch_embeddings.projection.weight'))
        return 'hf_vivit' if arrays[name].ndim == 5 else 'hf_vit'
    if has(r'(.*\.)?patch_embed\.proj\.weight') and has(r'(.*\.)?blocks\.0\.attn\.qkv\.weight'):
        # Without times (space_only) it cannot be told from an image ViT: the arrays are the same.
        return 'timesformer' if has(r'(.*\.)?time_embed') else 'timm'
    if not has(r'(.*/)?embedding/kernel') or not has(r'(.*/)?\w*Transformer/encoderblock.*'):
        return None
    if sort == 'msgpack' or has(r'(.*/)?(SpatialTransformer/.*|output_projection/kernel)'):
        return 'scenic'
    if has(r'(.*/)?Transformer/posembed_input/pos_embedding'):
        return 'vit_npz'
    return 'big_vision'
