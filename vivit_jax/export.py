"""A trained model as StableHLO, in a folder that runs without this package's model code, Flax or a config.

    model_float32.stablehlo    a program of (parameters, video float32 in [-1, 1]), for CPUs, CUDA GPUs and TPUs
    model_uint8.stablehlo      the same of (parameters, video uint8), with the scaling inside
    params.safetensors         the parameters, by name
    model.json                 class names, clips, preprocessing and versions: `Metadata`

Beside the parameters, and not around them, the program of FE-B/16x2 is 0.3 MB and ready on a CPU in 2 s at 1.2 GB of
memory; with the parameters as its constants it was 439 MB, and took 12 s and 2.9 GB. jax alone runs it, too:

    program = jax.export.deserialize(bytearray(open('model_float32.stablehlo', 'rb').read()))
    logits = program.call(safetensors.numpy.load_file('params.safetensors'), video)

jax promises to read an export for six months after it was written; `model.json` tells by which version.
"""

import dataclasses
import hashlib
import json
import math
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export
from safetensors.numpy import load_file, save_file

from vivit_jax import paths
from vivit_jax.config_values import alike, flaw, shown
from vivit_jax.formats.containers import read_json
from vivit_jax.formats.weights import RUNTIME, flat, nested, shortened, shortened_line
from vivit_jax.models.vivit import ViViT

PLATFORMS = ('cpu', 'cuda', 'tpu')
PIXELS = ('float32', 'uint8')
SCALING = 'float32 in [-1, 1]; uint8 p becomes p / 127.5 - 1, which model_uint8.stablehlo does itself'
# Of the metadata that are no text, what is like them.
LIKE: dict[str, Any] = {
    **dict.fromkeys(
        ('stride', 'short_side', 'temporal_views', 'spatial_views', 'calling_convention_version'), 0
    ),
    'clip': (1, 1, 1, 1),
    'crop': (1, 1),
    'platforms': ('',),
}
PARAMS, METADATA = 'params.safetensors', 'model.json'


@dataclasses.dataclass(frozen=True, kw_only=True)
class Metadata:
    """What one must know to use an exported model.

    Attributes:
        class_names: Names of the classes, those of several heads one after another; none: the program gives
            features, not logits.
        heads: Classes of each head, by its name.
        probabilities: What makes probabilities of the logits, for each head by itself: 'softmax' or 'sigmoid'.
        clip: `(t, h, w, c)` of the clips that it takes.
        stride: Frames of a video from one of the clip to the next.
        short: What a video shorter than its clip does, see `clips.clip_views`.
        short_side: Pixels to which the short side of frames is resized before cropping; 0: not.
        crop: (height, width) in pixels.
        temporal_views: Clips of a video whose scores the evaluation averages.
        spatial_views: Crops of each of them.
        average: What is averaged, 'logits' or 'softmax'.
        model: The fields of `ViViT`, but for those that tell how a machine runs it.
        source: The checkpoint it was made of.
        scaling: What pixels become, in words.
        platforms: What the programs run on.
        jax_version: That wrote them.
        calling_convention_version: Of `jax.export`.
    """

    class_names: tuple[str, ...]
    heads: dict[str, int]
    probabilities: str
    clip: tuple[int, ...]
    stride: int
    short: str
    short_side: int
    crop: tuple[int, ...]
    temporal_views: int
    spatial_views: int
    average: str
    model: dict[str, Any]
    source: str
    scaling: str = SCALING
    platforms: tuple[str, ...] = PLATFORMS
    jax_version: str = jax.__version__
    calling_convention_version: int = dataclasses.field(
        default_factory=lambda: int(jax.config.jax_export_calling_convention_version)  # type: ignore[attr-defined]
    )

    def __post_init__(self):
        named, wanted = len(self.class_names), self.model['num_classes']
        if not named == sum(self.heads.values()) == wanted:
            raise ValueError(
                f'{named} class names, the heads {self.heads} and a model of {wanted} classes do not go together'
            )


def model_settings(model: ViViT) -> dict[str, Any]:
    """Returns the fields of a model by name, but for those that tell how a machine runs it."""
    left_out = ('parent', 'name', *RUNTIME)
    names = [field.name for field in dataclasses.fields(model) if field.name not in left_out]
    return {name: getattr(model, name) for name in names}


def portable(model: ViViT) -> ViViT:
    """Returns a model that computes the same in a way that every platform can: no kernel of one kind of device."""
    return model.clone(**RUNTIME)


def stablehlo(
    model: ViViT, params: Mapping[str, Any], clip: tuple[int, ...], *, pixels: str = 'float32'
) -> bytes:
    """Exports a model for batches of any size, on any of `PLATFORMS`.

    Products are computed as the device does by default, just as in training and evaluation; attention is plain, as
    whichever machine this runs on, the program is for all.

    Args:
        model: The model.
        params: Its parameters, of which only the shapes matter.
        clip: `(t, h, w, c)` of a clip.
        pixels: 'float32' for video in [-1, 1], or 'uint8' for pixels that the program scales.

    Returns:
        What `jax.export.deserialize` reads: a function of ({'embedding/kernel': array, …}, video `[b t h w c]`)
        that gives the logits, float32 `[b k]`.

    Raises:
        ValueError: If the parameters or clip do not fit the model, or `pixels` is none of the choices; one line.
    """
    if pixels not in PIXELS:
        raise ValueError(f'pixels={pixels!r}: choose one of {", ".join(PIXELS)}')
    model = portable(model)
    _check_fit(model, flat(params), clip)

    def classify(params: dict[str, jax.Array], video: jax.Array) -> jax.Array:
        if pixels == 'uint8':
            video = video.astype(jnp.float32) / 127.5 - 1.0
        return model.apply({'params': nested(params)}, video)[0]

    shapes = {name: jax.ShapeDtypeStruct(array.shape, array.dtype) for name, array in flat(params).items()}
    (batch,) = export.symbolic_shape('b')
    video = jax.ShapeDtypeStruct((batch, *clip), jnp.dtype(pixels))
    exported = export.export(jax.jit(classify), platforms=PLATFORMS)(shapes, video)
    return bytes(exported.serialize())


def _check_fit(model: ViViT, params: Mapping[str, Any], clip: tuple[int, ...]) -> None:
    """Compares the parameters with those that the model has for clips of this shape."""
    if len(clip) != 4:
        raise ValueError(f'clip {tuple(clip)}: must be (t, h, w, c), as (32, 224, 224, 3)')
    video = jax.ShapeDtypeStruct((1, *clip), jnp.float32)
    expected = flat(jax.eval_shape(model.init, jax.random.key(0), video)['params'])
    _compare(params, expected, f'of a model for clips {tuple(clip)}')


def _compare(params: Mapping[str, Any], expected: Mapping[str, Any], owner: str) -> None:
    """Tells the first parameters that are missing, of no use or of another shape."""
    if missing := [name for name in expected if name not in params]:
        raise ValueError(f'{len(missing)} parameters {owner} are missing ({shortened(missing)})')
    if surplus := [name for name in params if name not in expected]:
        raise ValueError(f'{len(surplus)} parameters are none {owner} ({shortened(surplus)})')
    for name, leaf in expected.items():
        if params[name].shape != leaf.shape:
            raise ValueError(f'{name} is {params[name].shape}, but {leaf.shape} {owner}')


def save(
    folder: str | pathlib.Path, model: ViViT, params: Mapping[str, Any], metadata: Metadata
) -> dict[str, int]:
    """Writes a folder with everything that it takes to run a model.

    Args:
        folder: A new folder, or one without an exported model.
        model: The model.
        params: Its parameters, nested.
        metadata: What to say of it.

    Returns:
        Bytes of each file.

    Raises:
        ValueError: If the folder holds an exported model already, or the parts do not fit together; one line.
    """
    folder = paths.here(folder, 'folder')
    if (folder / METADATA).exists():
        raise ValueError(f'{folder}: holds an exported model already: choose another folder')
    programs = {_program(pixels): stablehlo(model, params, metadata.clip, pixels=pixels) for pixels in PIXELS}
    folder.mkdir(parents=True, exist_ok=True)
    for name, program in programs.items():
        (folder / name).write_bytes(program)
    save_file({name: np.ascontiguousarray(array) for name, array in flat(params).items()}, folder / PARAMS)
    sizes = {name: (folder / name).stat().st_size for name in (*programs, PARAMS)}
    # Last, so that a folder with it is whole; sizes and sums show copies that are not.
    told = {
        **dataclasses.asdict(metadata),
        'files': sizes,
        'sha256': {name: _sum(folder / name) for name in sizes},
    }
    text = json.dumps(told, indent=2, ensure_ascii=False)
    (folder / METADATA).write_text(text + '\n', encoding='utf-8')
    return {**sizes, METADATA: (folder / METADATA).stat().st_size}


def _sum(file: pathlib.Path) -> str:
    with file.open('rb') as content:
        return hashlib.file_digest(content, 'sha256').hexdigest()


def _program(pixels: str) -> str:
    return f'model_{pixels}.stablehlo'


@dataclasses.dataclass(frozen=True)
class Program:
    """An exported model that can be called; compiled once for every size of batch.

    Attributes:
        metadata: Class names, clips and preprocessing.
        params: The parameters, on the default device.
        entries: The compiled functions, by the kind of pixels.
    """

    metadata: Metadata
    params: dict[str, jax.Array]
    entries: Mapping[str, Callable[[dict[str, jax.Array], jax.Array], jax.Array]]

    def __call__(self, video: np.ndarray | jax.Array) -> jax.Array:
        """Classifies clips.

        Args:
            video: `[b t h w c]`, uint8, or of floats in [-1, 1].

        Returns:
            The logits, float32 `[b k]`.

        Raises:
            ValueError: If the clips have another shape or are of other numbers; one line with both.
        """
        clip = self.metadata.clip
        if video.ndim != 5 or video.shape[1:] != clip or not video.shape[0]:
            wanted = ', '.join(map(str, ('b', *clip)))
            raise ValueError(
                f'video of shape {tuple(video.shape)}: the model takes ({wanted}), axes b t h w c, b at least 1'
            )
        if video.dtype == np.uint8:
            return self.entries['uint8'](self.params, jnp.asarray(video))
        if not jnp.issubdtype(video.dtype, jnp.floating):
            raise ValueError(f'video of {video.dtype}: must be uint8, or floats in [-1, 1]')
        return self.entries['float32'](self.params, jnp.asarray(video, jnp.float32))


def load(folder: str | pathlib.Path) -> Program:
    """Reads what `save` wrote.

    Raises:
        ValueError: If there is no exported model, or it is damaged or of a jax that this one cannot read; one line.
    """
    folder = paths.here(folder, 'folder')
    if not (folder / METADATA).is_file():
        raise ValueError(f'{folder}: holds no exported model ({METADATA} and its files)')
    content = read_json(folder / METADATA)
    metadata = _metadata(content, folder / METADATA)
    for name in (*map(_program, PIXELS), PARAMS):
        size = (folder / name).stat().st_size if (folder / name).is_file() else None
        if size != content['files'][name]:
            state = 'is missing' if size is None else f'has {size} bytes'
            raise ValueError(
                f'{folder / name}: {state}, but {METADATA} tells of {shown(content["files"][name])} bytes'
            )
        # Earlier versions wrote none. A program that is damaged may do anything.
        if 'sha256' in content and content['sha256'].get(name) != _sum(folder / name):
            raise ValueError(f'{folder / name}: is damaged: its content is not what {METADATA} tells of')
    try:
        params = load_file(folder / PARAMS)
    except Exception as error:
        raise ValueError(f'{folder / PARAMS}: is damaged ({_one_line(error)})') from error
    entries = {}
    for pixels in PIXELS:
        file = folder / _program(pixels)
        try:
            exported = export.deserialize(bytearray(file.read_bytes()))
            (expected, _), _ = jax.tree.unflatten(exported.in_tree, exported.in_avals)
        except Exception as error:
            raise ValueError(
                f'{file}: is damaged, or of jax {metadata.jax_version}, which jax {jax.__version__} cannot read '
                f'({_one_line(error)})'
            ) from error
        _compare(params, expected, f'of {file}')
        entries[pixels] = jax.jit(exported.call)
    return Program(metadata, jax.device_put(params), entries)


def _metadata(content: dict[str, Any], file: pathlib.Path) -> Metadata:
    fields = [field.name for field in dataclasses.fields(Metadata)]
    files = content.get('files', {})
    if not isinstance(files, dict) or not isinstance(content.get('sha256', {}), dict):
        raise ValueError(f'{file}: is of no exported model: its files and sha256 must be objects')
    lacking = [name for name in fields if name not in content]
    lacking += [name for name in (*map(_program, PIXELS), PARAMS) if name not in files]
    if lacking:
        raise ValueError(f'{file}: is of no exported model: it does not tell {shortened(lacking)}')
    values: dict[str, Any] = {}
    for name in fields:
        value = tuple(content[name]) if isinstance(content[name], list) else content[name]
        if name == 'heads':
            right = isinstance(value, dict) and alike(tuple(value.values()), ())
        elif name == 'model':
            right = isinstance(value, dict) and alike(value.get('num_classes'), 0)
        elif name == 'class_names':
            right = alike(value, ('',))  # as many as there are
        else:
            right = alike(value, LIKE.get(name, '')) and not flaw(value)
        if not right:
            raise ValueError(f'{file}: is of no exported model: {name} is {shown(value)}')
        values[name] = value
    try:
        return Metadata(**values)
    except ValueError as error:
        raise ValueError(f'{file}: {shortened_line(str(error))}') from error


def _one_line(error: Exception) -> str:
    return ' '.join(f'{type(error).__name__}: {error}'.split())[:160]


def largest_difference(program: Program, model: ViViT, params: Mapping[str, Any]) -> float:
    """Runs a program and its model on two random clips; returns the largest difference of the logits.

    Both kinds of pixels are compared; NaN if anything is NaN. A head of zeros gives the same whatever comes before
    it: both are then compared with a random one.
    """
    # With a kernel of this device, its rounding would be what is compared.
    model = portable(model)
    pixels = np.random.default_rng(0).integers(0, 256, (2, *program.metadata.clip), np.uint8)
    video = pixels.astype(np.float32) / 127.5 - 1.0
    apply = jax.jit(lambda params, video: model.apply({'params': params}, video)[0])
    head = 'output_projection/kernel'
    shape = program.params[head].shape if head in program.params else ()
    if shape and not np.any(program.params[head]):
        random = jax.random.normal(jax.random.key(1), shape) / math.sqrt(shape[0])
        program = dataclasses.replace(program, params={**program.params, head: random})
        params = {**params, 'output_projection': {**params['output_projection'], 'kernel': random}}
    expected = np.asarray(apply(params, video))
    differences = [np.abs(np.asarray(program(clips)) - expected).max() for clips in (video, pixels)]
    return float(np.max(differences)) if all(map(math.isfinite, differences)) else math.nan
