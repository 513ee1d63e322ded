"""The sections that show clips: which were easy, hard and taken for something else, and where the model looks."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from vivit_jax import attention_sheet, drawing, evaluate, experiment, inference, rollout
from vivit_jax import config as config_module
from vivit_jax.data.record import Record, Source, UnreadableExample
from vivit_jax.models.embed import sample_frames
from vivit_jax.report import wording
from vivit_jax.report.classes import data_uri
from vivit_jax.report.markup import Html, join, paragraph, tag
from vivit_jax.report.reading import Decision, Example, Run

EACH = 4  # clips of a kind
FRAMES = 8  # of a clip
FRAME_SIDE = 128  # pixels, of the shorter side at least
QUALITY = 78  # of JPEG


@dataclasses.dataclass(frozen=True)
class Chosen:
    """Clips of a kind: what they are called, what that means, and which they are."""

    title: str
    note: str
    examples: tuple[Example, ...]


def confidence(example: Example) -> float:
    """Returns the probability of what was decided: of several heads, of all decisions together."""
    return math.prod(decision.probabilities[0] for decision in example.decisions)


def of_label(example: Example) -> float:
    """Returns the probability of the label, at most: what is behind the first five is below the fifth."""
    return math.prod(map(_of_label, example.decisions))


def _of_label(decision: Decision) -> float:
    """Returns the least probability of the labels of a decision; without any, that nothing is there."""
    known = dict(zip(decision.classes, decision.probabilities, strict=True))
    behind = min(decision.probabilities[-1], max(1 - math.fsum(decision.probabilities), 0.0))
    if not decision.labels:
        return 1 - decision.probabilities[0]
    return min(known.get(label, behind) for label in decision.labels)


def right(example: Example) -> bool:
    """Tells whether all decisions are right."""
    return all(decision.right for decision in example.decisions)


def choose(examples: Sequence[Example], each: int = EACH) -> list[Chosen]:
    """Chooses the clips to look at; none is shown twice, and the best are of different classes."""
    wrong = sorted((e for e in examples if not right(e)), key=lambda e: (-confidence(e), e.index))
    surest = tuple(wrong[:each])
    rest = [example for example in examples if example not in surest]
    worst = tuple(sorted(rest, key=lambda e: (of_label(e), e.index))[:each])
    best: dict[tuple[tuple[str, ...], ...], Example] = {}
    for example in sorted(
        (e for e in rest if right(e) and e not in worst), key=lambda e: (-of_label(e), e.index)
    ):
        best.setdefault(tuple(decision.labels for decision in example.decisions), example)
    count = f'{len(wrong):,} of {len(examples):,} are wrong'
    return [
        Chosen('Most confidently wrong', f'Wrong, and sure of it: {count}.', surest),
        Chosen(
            'Hardest',
            'The least probability for the label, whether it won or not, of those that are left.',
            worst,
        ),
        Chosen(
            'Easiest', 'The most probability for the label, one clip a class.', tuple(best.values())[:each]
        ),
    ]


def open_split(run: Run, split: str) -> Source:
    """Opens a split as the run had it.

    Raises:
        ValueError: If the data is not there.
    """
    config = config_module.load(str(run.folder / 'config.json'))
    looking = experiment.examination(config)
    evaluate.keep_drawn(run.folder, looking)
    return experiment.open_source(config, split, looking)


def section(run: Run, split: str, source: Source) -> list[Html]:
    """Returns clips of a split as filmstrips, with what was said of them."""
    parts: list[Html] = []
    for chosen in choose(run.examples[split]):
        if chosen.examples:
            shown = (_clip(run, example, source) for example in chosen.examples)
            parts += [
                tag('h4', chosen.title),
                paragraph(chosen.note, kind='note'),
                tag('div', *shown, class_='clips'),
            ]
    return parts


def record_of(source: Source, example: Example) -> Record:
    """Returns the record of an example.

    Raises:
        ValueError: If the data is not what it was when the model was evaluated.
    """
    if example.index >= len(source) or source[example.index].name != example.name:
        raise ValueError('the data is not what it was at the evaluation')
    return source[example.index]


def _clip(run: Run, example: Example, source: Source) -> Html:
    try:
        record = record_of(source, example)
        frames = record.read(
            np.linspace(0, record.num_frames - 1, min(FRAMES, record.num_frames)).round().astype(int)
        )
        picture = strip(frames, f'Frames of {example.name}')
    except (UnreadableExample, ValueError, OSError) as error:
        picture = paragraph(f'No picture: {" ".join(str(error).split())}')
    return tag('figure', picture, _said(run, example))


def strip(frames: np.ndarray, words: str) -> Html:
    """Returns frames side by side; on a phone half of them below the others."""
    scale = FRAME_SIDE / min(frames.shape[1:3])
    height, width = (round(side * scale) for side in frames.shape[1:3])
    pictures = [
        tag(
            'img',
            src=data_uri(drawing.jpeg(drawing.resize(frame, height, width), QUALITY), 'jpeg'),
            alt='' if place else words,
            width=width,
            height=height,
        )
        for place, frame in enumerate(drawing.as_rgb(frames))
    ]
    return tag('div', *pictures, class_='strip')


def _said(run: Run, example: Example) -> Html:
    """Returns the name of a clip, its label and what the model said."""
    lines = []
    for head, decision in zip(run.heads, example.decisions, strict=True):
        verdict = 'right' if decision.right else 'wrong'
        label = ', '.join(decision.labels) or 'no label'
        guesses = join(
            (
                tag(
                    'li',
                    tag('b', name) if name in decision.labels else name,
                    f' {wording.percent(probability)}',
                )
                for name, probability in list(zip(decision.classes, decision.probabilities, strict=True))[:3]
            )
        )
        what = head if len(run.heads) > 1 else 'label'
        said = tag('ul', tag('li', 'model:'), guesses, class_='guesses')
        lines.append(
            tag('div', tag('span', f'{what}: ', tag('b', label), class_=verdict), said, class_='said')
        )
    return tag('figcaption', *lines, tag('small', example.name))


def attention(run: Run, split: str, source: Source, predictor: inference.Predictor) -> list[Html]:
    """Returns where the model looks in a few clips: attention rollout over the frames that it saw."""
    examples = [each.examples[0] for each in choose(run.examples[split]) if each.examples]
    shown = []
    for example in examples:
        frames, tokens = looked_at(predictor, predictor.clip(record_of(source, example)))
        # On grey all colour is heat.
        grey = drawing.as_rgb(frames).mean(axis=3, keepdims=True).round().astype(np.uint8)
        tubelet: Any = tuple(predictor.config.model.tubelet)
        heated = drawing.overlay(grey, drawing.spread(tokens, tubelet, grey.shape[:3]))
        chosen = np.linspace(0, len(frames) - 1, min(FRAMES, len(frames))).round().astype(int)
        pictures = [
            strip(frames[chosen], f'Frames of {example.name} as the model saw them'),
            strip(heated[chosen], 'The same in grey with attention laid over them'),
        ]
        shown.append(tag('figure', *pictures, _said(run, example)))
    return [tag('div', *shown, class_='clips')]


def looked_at(predictor: inference.Predictor, clip: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the frames that a model sees of a clip, and the heat of each token, in [0, 1]."""
    model = predictor.model
    video = evaluate.to_float(jnp.asarray(clip[None]))
    found, _ = rollout.on_clips(model, predictor.params, video)
    shares = found.map[0]
    heat, _ = attention_sheet.heat(shares, 1 / shares.size)
    frames = clip[sample_frames(len(clip), model.sampled_frames)] if model.sampled_frames else clip
    return frames, heat
