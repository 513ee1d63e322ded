"""Writes a checkpoint as StableHLO: a folder that jax alone can run, on CPUs, CUDA GPUs and TPUs, in any batch size.

The folder holds the program (for video float32 in [-1, 1], and for uint8), the parameters, and model.json with class
names, the shape of clips and their preprocessing. Both, the model and what was written, are then run on random clips.

examples:
  python tools/export_stablehlo.py runs/moving_digits --output=exported
  python tools/export_stablehlo.py runs/k400/checkpoints/9000 --output=exported
  python tools/export_stablehlo.py huggingface_vivit_folder --output=exported

then:
  python tools/run_stablehlo.py exported CLIP.mp4

exit codes: 0 done; 1 written, but its logits differ from the model's by more than 0.0001; 2 a mistake.
"""

import sys
from collections.abc import Sequence
from typing import Any

from vivit_jax import checkpoint, export, formats, help_text, paths
from vivit_jax.config import default_config
from vivit_jax.formats.account import as_is
from vivit_jax.models.vivit import ViViT, create_model
from vivit_jax.telling.printable import printable

TOLERANCE = 1e-4


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    parser = help_text.parser(__doc__)
    parser.add_argument(
        'checkpoint',
        metavar='CHECKPOINT',
        help='a workdir, one of its steps, or any file or folder of weights',
    )
    parser.add_argument('--output', required=True, metavar='DIR', help='a new folder')
    parser.add_argument(
        '--num_heads', type=int, metavar='N', help='attention heads, where a file does not tell'
    )
    parsed = parser.parse_args(arguments)
    try:
        folder = paths.here(parsed.output, '--output')
        model, params, metadata, notes = read(paths.path(parsed.checkpoint), parsed.num_heads)
        sizes = export.save(folder, model, params, metadata)
        program = export.load(folder)
    except (ValueError, ImportError, OSError) as error:
        print(printable(f'error: {error}'), file=sys.stderr)
        return 2
    print(*notes, sep='\n')
    print(f'written to {folder}, {sum(sizes.values()) / 1e6:.1f} MB, for {", ".join(metadata.platforms)}:')
    print(*(f'  {name}  {size:,} bytes' for name, size in sizes.items()), sep='\n')
    difference = export.largest_difference(program, model, params)
    print(f'largest difference of the logits from the model, on random clips: {difference:.2g}')
    if not difference <= TOLERANCE:
        print(
            f'error: {folder} is not to be used: its logits differ from the model by {difference:.2g}, more than '
            f'{TOLERANCE:g}',
            file=sys.stderr,
        )
        return 1
    if metadata.class_names:
        print(f'next: python tools/run_stablehlo.py {folder} CLIP.mp4')
    else:
        print(f'it has no head and gives features: vivit_jax.export.load({str(folder)!r})(video)')
    return 0


def read(
    path: paths.Path, num_heads: int | None = None
) -> tuple[ViViT, dict[str, Any], export.Metadata, list[str]]:
    """Reads a model with what is known of its clips.

    Args:
        path: A checkpoint of this package, or weights of another format.
        num_heads: See `formats.load`.

    Returns:
        The model, its parameters, how to use it, and notes for people.
    """
    notes: list[str] = []
    if checkpoint.find(path) is not None:
        saved = checkpoint.read(path)
        params, settings, source = saved.params, saved.meta['config'], str(saved.folder)
        head = params['output_projection']['kernel'].shape[-1] if 'output_projection' in params else 0
        model, names = create_model(head, **settings['model']), saved.meta['class_names']
    else:
        weights = formats.load(path, num_heads)
        params, names, source = weights.params, weights.class_names, weights.path
        model = create_model(weights.num_classes, **weights.model)
        settings, guess = assumed(weights)
        notes += [*weights.notes, as_is(weights).summary(), guess]
    data, views = settings['data'], settings['evaluation']
    # Without a head it gives features, whatever the file says of classes.
    classes = (tuple(names) or tuple(map(str, range(model.num_classes)))) if model.num_classes else ()
    heads = dict(zip(data['heads'], data['num_classes'], strict=False)) if len(data['heads']) > 1 else {}
    if not names and classes:
        notes.append('the names of the classes are not known: they are numbers')
    metadata = export.Metadata(
        class_names=classes,
        heads=heads or {data['heads'][0]: len(classes)},
        probabilities=settings['training']['loss'],
        clip=(data['frames'], *data['crop'], data['channels']),
        stride=data['stride'],
        short=data['short'],
        short_side=data['short_side'],
        crop=tuple(data['crop']),
        temporal_views=views['temporal_views'],
        spatial_views=views['spatial_views'],
        average=views['average'],
        model=export.model_settings(model),
        source=source,
    )
    return model, params, metadata, notes


def assumed(weights: formats.Weights) -> tuple[dict[str, Any], str]:
    """Returns a configuration for weights that come without one, and says what of it is a guess."""
    if weights.grid is None:
        raise ValueError(
            f'{weights.path}: the size of its clips cannot be told from the file: put it into a model first, with '
            'tools/convert_vit.py --config'
        )
    settings = default_config()
    usual = settings.data.short_side / min(settings.data.crop)
    frames, *crop = (size * tube for size, tube in zip(weights.grid, weights.model['tubelet'], strict=True))
    settings.data.frames, settings.data.crop = frames, tuple(crop)
    settings.data.channels = weights.params['embedding']['kernel'].shape[-2]
    settings.data.short_side = round(usual * min(crop))
    note = (
        f'{weights.path} ({weights.kind}) does not tell how its clips were made; assumed: '
        f'frame stride {settings.data.stride}, short side {settings.data.short_side}, central crop {tuple(crop)}, '
        'pixels in [-1, 1], softmax; model.json can be edited'
    )
    return settings.to_dict(), note


if __name__ == '__main__':
    sys.exit(main())
