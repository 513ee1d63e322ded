"""Classifies clips with a model that tools/export_stablehlo.py wrote.

A video file is decoded, sampled, resized and cropped as in evaluation (its central view); a .npy file holds one clip
[t h w c], uint8, or floats in [-1, 1], of the very shape that the model takes.

examples:
  python tools/run_stablehlo.py exported archery.mp4
  python tools/run_stablehlo.py exported videos/*.mp4 --json > predictions.jsonl
  python tools/run_stablehlo.py exported clip.npy

--json prints one object a clip, with its five most probable classes or why it could not be read:
  {"clip": …, "predictions": {HEAD: [{"class": …, "probability": …}, …]}}
  {"clip": …, "error": …}

exit codes: 0 done; 2 a mistake, or a clip that could not be read (the others were classified).
"""

import functools
import json
import pathlib
import sys
from collections.abc import Sequence

import numpy as np

from vivit_jax import archives, export, help_text, paths
from vivit_jax.data.files.decoding import probe, read_frames
from vivit_jax.data.record import Record
from vivit_jax.data.views import Views
from vivit_jax.telling.printable import printable

# Filters overshoot a little; pixels in [0, 255] or standardised ones go much further.
SLACK = 0.01

Predictions = dict[str, list[tuple[str, float]]]


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    parser = help_text.parser(__doc__)
    parser.add_argument('folder', metavar='DIR', help='what tools/export_stablehlo.py wrote')
    parser.add_argument('clips', metavar='CLIP', nargs='+', help='a video file, or a .npy of one clip')
    parser.add_argument('--json', action='store_true', help='for programs: one JSON object a line')
    parsed = parser.parse_args(arguments)
    try:
        program = export.load(paths.here(parsed.folder, 'DIR'))
        if not program.metadata.class_names:
            raise ValueError(f'{parsed.folder}: the model has no head, so it has no classes to tell')
    except (ValueError, OSError) as error:
        print(printable(f'error: {error}'), file=sys.stderr)
        return 2
    broken = 0
    for path in parsed.clips:
        try:
            logits = np.asarray(program(read_clip(paths.here(path, 'CLIP'), program.metadata)[np.newaxis]))[0]
            if not np.isfinite(logits).all():
                raise ValueError(f'{path}: the model gives logits that are not finite numbers')
        except (ValueError, OSError) as error:
            broken += 1
            print(printable(f'error: {error}'), file=sys.stderr)
            if parsed.json:
                print(json.dumps({'clip': path, 'error': str(error)}), flush=True)
            continue
        show(path, top(logits, program.metadata), as_json=parsed.json)
    if broken:
        print(f'{broken} of {len(parsed.clips)} clips could not be read', file=sys.stderr)
    return 2 if broken else 0


def read_clip(path: pathlib.Path, metadata: export.Metadata) -> np.ndarray:
    """Reads a clip `[t h w c]` for a model, uint8, or float32 in [-1, 1].

    Args:
        path: A video file, of which the central view is taken, or a .npy file.
        metadata: The model's.

    Raises:
        ValueError: If it cannot be read or does not fit; one line.
    """
    if not path.is_file():
        raise ValueError(f'{path}: does not exist')
    if path.suffix == '.npy':
        return _read_array(path, metadata.clip)
    found = probe(str(path))
    if isinstance(found, str):
        raise ValueError(f'{path}: cannot be read: {found}')
    if metadata.clip[3] != 3:
        raise ValueError(
            f'{path}: videos have 3 channels and the model takes clips {metadata.clip} (t, h, w, c): '
            'give a .npy of that shape'
        )
    record = Record(
        name=str(path),
        label=0,
        num_frames=found.num_frames,
        frame_size=found.frame_size,
        read=functools.partial(read_frames, str(path), found),
    )
    views = Views(
        frames=metadata.clip[0],
        stride=metadata.stride,
        short=metadata.short,
        short_side=metadata.short_side,
        crop=(metadata.crop[0], metadata.crop[1]),
        temporal_views=1,
        spatial_views=1,
    )
    try:
        return views(record)
    except ValueError as error:
        raise ValueError(str(error) if str(path) in str(error) else f'{path}: {error}') from error


def _read_array(path: pathlib.Path, clip: tuple[int, ...]) -> np.ndarray:
    try:
        with path.open('rb') as file:
            array = archives.read_npy(file, path.stat().st_size)
    except (ValueError, EOFError, OSError) as error:
        raise ValueError(
            f'{path}: is no array of NumPy, or damaged ({" ".join(str(error).split())})'
        ) from error
    if array.shape != clip:
        raise ValueError(f'{path}: holds an array {array.shape}, but the model takes {clip} (t, h, w, c)')
    if array.dtype == np.uint8:
        return array
    if array.dtype.kind != 'f':
        raise ValueError(f'{path}: holds {array.dtype}: must be uint8, or floats in [-1, 1]')
    low, high = float(array.min()), float(array.max())
    if not (low >= -1 - SLACK and high <= 1 + SLACK):
        raise ValueError(f'{path}: holds values from {low:g} to {high:g}: floats must be in [-1, 1]')
    return array.astype(np.float32)


def top(logits: np.ndarray, metadata: export.Metadata, number: int = 5) -> Predictions:
    """Returns the most probable classes of each head, with their probabilities.

    Args:
        logits: `[k]`.
        metadata: The model's.
        number: Classes of a head, at most.
    """
    best: Predictions = {}
    start = 0
    for head, size in metadata.heads.items():
        scores = logits[start : start + size].astype(np.float64)
        if metadata.probabilities == 'sigmoid':
            probability = 1.0 / (1.0 + np.exp(-scores))
        else:
            probability = np.exp(scores - scores.max())
            probability /= probability.sum()
        order = np.argsort(-scores, kind='stable')[:number]
        best[head] = [(metadata.class_names[start + k], float(probability[k])) for k in order]
        start += size
    return best


def show(path: str, predictions: Predictions, *, as_json: bool) -> None:
    """Prints what was predicted for a clip, for people or as a line of JSON."""
    if as_json:
        listed = {
            head: [{'class': name, 'probability': probability} for name, probability in best]
            for head, best in predictions.items()
        }
        print(json.dumps({'clip': path, 'predictions': listed}, ensure_ascii=False), flush=True)
        return
    print(path)
    for head, best in predictions.items():
        if len(predictions) > 1:
            print(f'  {head}')
        for name, probability in best:
            print(f'  {probability:8.2%}  {name}')


if __name__ == '__main__':
    sys.exit(main())
