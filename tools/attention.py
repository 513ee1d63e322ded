"""Shows what of a clip an answer comes from: attention rollout as heat over the frames.

A sheet FILE.png for each clip: the frames as the model gets them, the same under heat, the share of each moment, the
most probable classes; of models that attend to space and time apart also each alone. And an animation, if asked for.
Clips are named as for predict: files, folders, tables, or SPLIT:INDEX of the data of the run. What such pictures
tell, and what they do not, is in docs/rollout.md.

examples:
  python tools/attention.py clip.mp4 --checkpoint=runs/my_videos
  python tools/attention.py test:0-3 --checkpoint=runs/moving_digits --output=sheets --animation=gif
  python tools/attention.py clip.mp4 --checkpoint=runs/my_videos --class=waving --output=waving.png
"""

import argparse
import difflib
import math
import pathlib
import re
import sys
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

import vivit_jax
from vivit_jax import attention_sheet, drawing, evaluate, feeding, help_text, results, rollout
from vivit_jax.attention_sheet import Look
from vivit_jax.data import clips
from vivit_jax.data.given import Given
from vivit_jax.data.joined import One
from vivit_jax.data.record import Record, UnreadableExample
from vivit_jax.inference import Prediction, Predictor
from vivit_jax.models.embed import sample_frames
from vivit_jax.paths import here
from vivit_jax.telling.printable import printable, warning_line

FPS = 8


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    warnings.formatwarning = warning_line
    parsed = _parser().parse_args(arguments)
    try:
        model = vivit_jax.load(parsed.checkpoint)
        fusion, which = _fusion(model, parsed.head_fusion, parsed.class_name)
        found = list(_records(model, parsed.clips))
        paths = _paths(parsed.output, parsed.animation, [record.name for record, _ in found])
        for (record, label), (sheet, animation) in zip(found, paths, strict=True):
            look = examine(model, record, label, fusion=fusion, which=which, view=parsed.view)
            sheet.parent.mkdir(parents=True, exist_ok=True)
            attention_sheet.draw(look).write(sheet)
            said = ', '.join(f'{name} {100 * p:.1f} %' for _, top in look.answers for name, p in top[:1])
            views = math.prod(model.views)
            alone = f' (this clip alone; predict averages {views})' if said and views > 1 else ''
            print(f'{sheet}: {said}{alone}')
            if animation:
                animation.parent.mkdir(parents=True, exist_ok=True)
                write = drawing.write_gif if animation.suffix == '.gif' else drawing.write_mp4
                write(animation, attention_sheet.animate(look), FPS)
                print(f'{animation}: {len(look.frames)} frames')
    except KeyboardInterrupt:
        print('stopped', file=sys.stderr)
        return 130
    except (ValueError, OSError, ImportError, UnreadableExample) as error:
        print(printable(f'error: {error}'), file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = help_text.parser(__doc__)
    option = parser.add_argument
    option('clips', nargs='+', metavar='CLIP', help='a file, folder or table, or SPLIT:INDEX')
    option('--checkpoint', required=True, metavar='DIR', help='a run, one of its checkpoints, or weights')
    option('--output', default='runs/attention', metavar='FOLDER|FILE.png', help='default %(default)s')
    option(
        '--animation', default='', metavar='gif|mp4|FILE', help='one too: beside the sheets, or in that file'
    )
    option('--class', dest='class_name', default='', metavar='NAME', help='show what speaks for this class')
    option('--head-fusion', choices=rollout.FUSIONS, help='how heads become one (default mean)')
    option(
        '--view',
        default='1/1',
        metavar='N/OF[,N/3]',
        help='of clips over the video, of 3 crops (default 1/1)',
    )
    return parser


# --- What is asked for ---


def _fusion(model: Predictor, fusion: str | None, name: str) -> tuple[str, int | None]:
    """Returns how heads become one, and the number of the class that is asked about."""
    if not name:
        return fusion or 'mean', None
    if fusion not in (None, 'gradient'):
        raise ValueError(
            f'--class={name}: only gradients tell what speaks for a class, not --head-fusion={fusion}'
        )
    if name not in model.class_names:
        near = difflib.get_close_matches(name, model.class_names, n=3) or model.class_names[:5]
        raise ValueError(f'--class={name}: the model has no such class; it has {", ".join(near)}')
    return 'gradient', model.class_names.index(name)


def _records(model: Predictor, names: Sequence[str]) -> Iterator[tuple[Record, str]]:
    """Yields what is named, and its label where that is known."""
    for name in names:
        source = model.open([name])
        for bad, cause in source.bad:
            raise ValueError(f'{bad}: {cause}')
        for index in range(len(source)):
            record = source[index]
            yield record, '' if isinstance(source, Given) else _label(model, record)


def _label(model: Predictor, record: Record) -> str:
    names, label = model.class_names, record.label
    if isinstance(label, int):
        return names[label]
    if isinstance(label[0], float):
        return ', '.join(name for name, value in zip(names, label, strict=True) if value)
    return ' + '.join(names[part.start + int(k)] for part, k in zip(model.heads.values(), label, strict=True))


def _paths(
    output: str, animation: str, names: Sequence[str]
) -> list[tuple[pathlib.Path, pathlib.Path | None]]:
    """Returns where the sheet and the animation of each clip go."""
    stems: list[str] = []
    for name in names:
        stem = re.sub(r'[^\w.-]+', '_', pathlib.PurePath(name).stem)
        again = sum(stem == other.partition(',')[0] for other in stems)
        stems.append(f'{stem},{again + 1}' if again else stem)
    single = pathlib.Path(output).suffix == '.png'
    sheets = [here(output, '--output')]
    sheets = sheets if single else [sheets[0] / f'{stem}.png' for stem in stems]
    if len(sheets) != len(names):
        raise ValueError(f'--output={output}: one file for {len(names)} clips; name a folder')
    if animation in ('', 'gif', 'mp4'):
        return [(sheet, sheet.with_suffix(f'.{animation}') if animation else None) for sheet in sheets]
    path = here(animation, '--animation')
    if path.suffix not in ('.gif', '.mp4') or len(names) > 1:
        raise ValueError(
            f'--animation={animation}: write gif or mp4, or of one clip (here {len(names)}) FILE.gif or FILE.mp4'
        )
    return [(sheets[0], path)]


def _view(text: str) -> tuple[int, int, int, int]:
    """Returns the clip, of how many, and the crop, of how many, that `--view` names; counted from 0."""
    match = re.fullmatch(r'(\d+)/(\d+)(?:,(\d)/3)?', text)
    clip, clips, crop = (int(number or 2) for number in match.groups()) if match else (0, 0, 0)
    if not (1 <= clip <= clips and 1 <= crop <= 3):
        raise ValueError(
            f'--view={text}: write N/OF, as 2/4 for the second of four clips, or N/OF,N/3 for a crop too'
        )
    return clip - 1, clips, crop - 1 if ',' in text else 0, 3 if ',' in text else 1


# --- What there is to see ---


def examine(
    model: Predictor, record: Record, label: str, *, fusion: str, which: int | None, view: str
) -> Look:
    """Runs a clip through the model and rolls its attention out.

    Args:
        model: The model.
        record: The video.
        label: What it is labelled with, empty where that is not known.
        fusion: One of `rollout.FUSIONS`.
        which: The number of a class, for 'gradient'; None for the most probable one.
        view: What clip of the video, as `--view` has it.
    """
    vivit, data = model.model, model.config.data
    clip, of_clips, crop, of_crops = _view(view)
    examples: Any = feeding.evaluation_examples(
        model.config, One(record), temporal_views=of_clips, spatial_views=of_crops
    )
    views = examples.views(record)
    video = views if views.ndim == 4 else views[clip * of_crops + crop]
    numbers = clips.clip_views(
        record.num_frames, frames=data.frames, stride=data.stride, views=of_clips, short=data.short
    )[clip]
    shares, logits = rollout.on_clips(
        vivit,
        model.params,
        evaluate.to_float(jnp.asarray(video[None])),
        fusion=fusion,
        classes=None if which is None else np.array([which]),
    )
    if not shares.map.any():
        raise ValueError(f'{record.name}: nothing in the attention of {model.folder} speaks for this class')
    if vivit.sampled_frames:
        seen = sample_frames(len(video), vivit.sampled_frames)
        video, numbers = video[seen], numbers[seen]
    times, high, wide = (
        count * side for count, side in zip(shares.map.shape[1:], vivit.tubelet, strict=True)
    )
    how = {'mean': 'mean of the heads', 'max': 'strongest head', 'gradient': 'heads by gradient'}[fusion]
    title = Look.title
    if fusion == 'gradient':
        title = f'What speaks for {model.class_names[int(logits[0].argmax()) if which is None else which]}'
    frame = 'slice' if data.source in ('medmnist', 'volumes') else 'frame'
    apart = vivit.attention not in ('spatio_temporal', 'local_global', 'space_only')
    return Look(
        name=record.name,
        explanation=f'{vivit.attention} of {model.folder}, {how}; {frame}s {numbers.min()} to {numbers.max()} '
        f'of {record.num_frames}, {wide} x {high}',
        answers=_answers(model, record.name, logits[0]),
        label=label,
        frames=video[:times, :high, :wide],
        numbers=numbers[:times],
        tubelet=vivit.tubelet,
        shares=shares.map[0],
        time=shares.time[0],
        space=shares.space[0] if apart else None,
        frame=frame,
        title=title,
    )


def _answers(model: Predictor, name: str, scores: np.ndarray) -> list[tuple[str, list[tuple[str, float]]]]:
    """Returns the most probable classes of each head, of this clip alone."""
    if not model.class_names:
        return []
    each = [results.probabilities(scores[part], model.config.training.loss) for part in model.heads.values()]
    prediction = Prediction(name, scores, np.concatenate(each), model.class_names, model.heads)
    several = len(model.heads) > 1
    return [
        (head if several else 'Prediction', prediction.top(3 if several else 5, head)) for head in model.heads
    ]


if __name__ == '__main__':
    sys.exit(main())
