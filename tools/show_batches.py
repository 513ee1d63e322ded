"""Draws training clips exactly as the model gets them, before and after augmentation, and the views of evaluation.

Two pictures: FILE.png has the first clips of a training step, as they were decoded and as they go into the model;
FILE_views.png has every view that an evaluation averages over. Look at them before a long run: are the labels right,
does augmentation leave visible what tells the class, do the views see it?

examples:
  python tools/show_batches.py --config=configs/moving_digits.py --output=runs/digits.png
  python tools/show_batches.py --config=configs/my_videos.py --config.data.root=VIDEOS --clips=4
  python tools/show_batches.py --config=configs/my_videos.py --config.data.root=VIDEOS --step=100 --mixup
"""

import dataclasses
import functools
import pathlib
import sys
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from vivit_jax import command_line, experiment, feeding, help_text, paths
from vivit_jax import config as config_module
from vivit_jax.data.record import Label, Record, Source
from vivit_jax.drawing import PALE, Sheet, fit
from vivit_jax.telling.printable import printable, warning_line

# Lengths are points. Heights of a frame: one strip in a row, several, and slices, which are small and of which many
# are worth a look.
ALONE, BESIDE, SLICE = 96, 64, 48
LINES = {SLICE: 2}  # of frames of a strip, by their height, where it is more than one
WIDEST = 4 / 3  # of a frame's width to its height
STRIP = 640  # of a row of frames, at most
GAP, MARGIN, TITLE, CAPTION, HEADING = 3, 24, 22, 17, 54


@dataclasses.dataclass(frozen=True)
class Strip:
    """Frames of one clip, `[t h w c]`, and what stands above them."""

    caption: str
    frames: np.ndarray


@dataclasses.dataclass(frozen=True)
class Block:
    """One example: its class or classes, its name, and strips in rows."""

    label: str
    name: str
    rows: list[list[Strip]]


@dataclasses.dataclass(eq=False)
class Watched:
    """A source that remembers what was last read of it: the clip as it was decoded."""

    source: Source
    record: Record | None = None
    indices: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, np.int64))
    pixels: np.ndarray | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.source, name)

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Record:
        self.record = self.source[index]
        return dataclasses.replace(self.record, read=functools.partial(self._read, self.record))

    def _read(self, record: Record, indices: np.ndarray) -> np.ndarray:
        self.pixels = None
        self.record, self.indices, self.pixels = record, indices, record.read(indices)
        return self.pixels


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    warnings.formatwarning = warning_line
    parser = help_text.parser(__doc__)
    parser.add_argument('--config', required=True, metavar='FILE[:ARGUMENT]', help='a file of configs/')
    parser.add_argument('--output', metavar='FILE.png', help='default: runs/NAME_batches.png')
    parser.add_argument('--clips', type=int, default=8, metavar='N', help='how many (default 8)')
    parser.add_argument(
        '--split', metavar='NAME', help='default: what is trained on, and the first test split'
    )
    parser.add_argument('--step', type=int, default=0, metavar='N', help='of training (default 0, the first)')
    parser.add_argument('--mixup', action='store_true', help='also blend clips, as training.mixup_alpha says')
    parsed, rest = parser.parse_known_args(arguments)
    overrides = command_line.overrides(parser, rest)
    try:
        config = config_module.load(parsed.config, overrides)
        path = paths.here(parsed.output or f'runs/{config.name}_batches.png', '--output')
        if path.suffix != '.png' or parsed.clips < 1 or parsed.step < 0:
            raise ValueError(
                f'--output={path} --clips={parsed.clips} --step={parsed.step}: write FILE.png, at least 1 and 0'
            )
        show(config, path, clips=parsed.clips, split=parsed.split, step=parsed.step, blend=parsed.mixup)
    except (ValueError, OSError) as error:
        print(printable(f'error: {error}'), file=sys.stderr)
        return 2
    return 0


def show(
    config: ConfigDict, path: pathlib.Path, *, clips: int, split: str | None, step: int, blend: bool
) -> None:
    """Draws both pictures and lists what is in them.

    Args:
        config: The configuration.
        path: Of the first picture; the second is beside it.
        clips: Examples in each, at least 1.
        split: Which split; None for what is trained on and the first of what is tested.
        step: Step of training whose batch is shown, counted from 0.
        blend: Whether mixup is applied.

    Raises:
        ValueError: If the configuration or its data do not allow it; one line.
    """
    experiment.check(config)
    if blend and not config.training.mixup_alpha:
        raise ValueError('--mixup: training.mixup_alpha=0.0 says not to blend; set it above 0')
    views = path.with_name(f'{path.stem}_views.png')
    name = split or config.data.train_split
    source = experiment.make_source(config, name)
    blocks = training_blocks(config, source, clips, step, blend)
    slices = config.data.source in ('medmnist', 'volumes')
    mixed = f', blended by training.mixup_alpha={config.training.mixup_alpha}' if blend else ''
    explanation = f'each clip as decoded and as trained on{mixed}'
    _write(path, blocks, f'{config.name}: {name}, step {step}', explanation, SLICE if slices else ALONE)
    test = split or config.data.test_splits[0]
    source = source if test == name else experiment.make_source(config, test)
    blocks = view_blocks(config, source, min(clips, len(source)))
    times, crops = config.evaluation.temporal_views, config.evaluation.spatial_views
    explanation = f'{times} x {crops} views (time x crops) of each example'
    cell = SLICE if slices else ALONE if crops == 1 else BESIDE
    _write(views, blocks, f'{config.name}: {test}', explanation, cell)


def training_blocks(config: ConfigDict, source: Source, clips: int, step: int, blend: bool) -> list[Block]:
    """Returns the first clips of a step's batch, before and after augmentation."""
    watched = Watched(source)
    # What the training step would do comes out the same, to a grey level, where reading does it.
    config = ConfigDict(config.to_dict())
    config.data.augment_on = 'host'
    examples = feeding.training_examples(config, watched)
    first = step * config.training.batch_size
    blocks = []
    for position in range(first, first + clips):
        example = examples(position)
        record, before, indices = watched.record, watched.pixels, watched.indices
        assert record is not None
        video, label = example['video'], describe(config, source, record.label)
        if blend:
            video, label = _mixed_up(config, source, examples, position)
        height, width = video.shape[1:3]
        rows = [[Strip(f'as the model gets it: {width} x {height}', video)]]
        if before is not None:
            size = f'{before.shape[2]} x {before.shape[1]}'
            frames = f'{_unit(config)} {indices.min()} to {indices.max()} of {record.num_frames}'
            rows.insert(0, [Strip(f'as decoded: {size}, {frames}', before)])
        blocks.append(Block(label, record.name, rows))
    return blocks


def _mixed_up(config: ConfigDict, source: Source, examples: Any, position: int) -> tuple[np.ndarray, str]:
    """Returns a clip blended with its partner as the training step does it, and both labels with their shares."""
    import jax
    import jax.numpy as jnp

    from vivit_jax import evaluate, losses
    from vivit_jax.mixup import mixup

    step, row = divmod(position, config.training.batch_size)
    partner = examples((step + 1) * config.training.batch_size - 1 - row)
    pair = [examples(position), partner]
    video = evaluate.to_float(jnp.stack([example['video'] for example in pair]))
    sizes = experiment.head_sizes(config, source)
    targets = losses.one_hot_targets(jnp.stack([example['label'] for example in pair]), sizes)
    rng, _ = jax.random.split(jax.random.fold_in(jax.random.key(config.seed), step))
    video, targets = mixup(rng, video, targets, alpha=config.training.mixup_alpha)
    ends = np.cumsum(sizes)
    shares = {k: float(share) for k, share in enumerate(targets[0]) if share}
    order = sorted(shares, key=lambda k: (np.searchsorted(ends, k, side='right'), -shares[k]))
    label = ' + '.join(f'{shares[k]:.2f} {source.class_names[k]}' for k in order)
    return np.asarray(video[0]), label


def view_blocks(config: ConfigDict, source: Source, clips: int) -> list[Block]:
    """Returns examples spread over the split with all their views, a row for each place in time."""
    times, crops = config.evaluation.temporal_views, config.evaluation.spatial_views
    watched = Watched(source)
    examples = feeding.evaluation_examples(config, watched, temporal_views=times, spatial_views=crops)
    blocks = []
    for index in np.linspace(0, len(source) - 1, clips).round().astype(int).tolist():
        record, example = source[index], examples(index)
        pixels = watched.pixels
        if not example['mask'] or pixels is None:
            blocks.append(Block('cannot be read, left out', record.name, []))
            continue
        video = example['video'].reshape(times, crops, *example['video'].shape[-4:])
        tall = pixels.shape[1] > pixels.shape[2]
        places = {1: ['centre'], 3: ['top' if tall else 'left', 'centre', 'bottom' if tall else 'right']}[
            crops
        ]
        rows = [
            [Strip(f'view {t + 1}/{times}, crop {place}', video[t, s]) for s, place in enumerate(places)]
            for t in range(times)
        ]
        blocks.append(Block(describe(config, source, record.label), record.name, rows))
    return blocks


def describe(config: ConfigDict, source: Source, label: Label) -> str:
    """Returns the names of an example's classes: `noun + verb` of several heads, `a | b` of several labels."""
    names = list(source.class_names)
    if isinstance(label, int):
        return names[label]
    if isinstance(label[0], float):
        return ' | '.join(name for name, value in zip(names, label, strict=True) if value) or 'no label'
    starts = np.cumsum((0, *experiment.head_sizes(config, source)))
    return ' + '.join(names[start + int(k)] for start, k in zip(starts, label, strict=False))


def _unit(config: ConfigDict) -> str:
    return 'slices' if config.data.source in ('medmnist', 'volumes') else 'frames'


# --- Drawing ---


def _write(path: pathlib.Path, blocks: list[Block], heading: str, explanation: str, cell: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    draw(blocks, heading, explanation, cell).write(path)
    print(f'{path}: {explanation}')
    wide = max(len(block.label) for block in blocks)
    for number, block in enumerate(blocks, start=1):
        print(f'  {number:2}  {block.label:{wide}}  {block.name}')


def draw(blocks: Sequence[Block], heading: str, explanation: str, cell: int) -> Sheet:
    """Returns the sheet: the blocks, in one column or two."""
    cells = _cells(blocks, cell)
    widths = [_width(block, cells) for block in blocks]
    columns = 2 if len(blocks) > 1 and max(widths) <= 1.3 * STRIP else 1
    block_width = max(*widths, 300)
    heights = [TITLE + sum(map(cells.row_height, block.rows)) for block in blocks]
    lines = [max(heights[start : start + columns]) for start in range(0, len(blocks), columns)]
    width = 2 * MARGIN + columns * block_width + (columns - 1) * MARGIN
    height = 2 * MARGIN + HEADING + sum(lines) + (len(lines) - 1) * MARGIN
    sheet = Sheet(width, height)
    sheet.text(MARGIN, MARGIN, heading, width - 2 * MARGIN, size=17, weight='bold')
    sheet.text(MARGIN, MARGIN + 24, explanation, width - 2 * MARGIN, size=11, color=PALE)
    top = MARGIN + HEADING
    for start, line in zip(range(0, len(blocks), columns), lines, strict=True):
        for column, block in enumerate(blocks[start : start + columns]):
            left = MARGIN + column * (block_width + MARGIN)
            _draw_block(sheet, block, start + column + 1, left, top, block_width, cells)
        top += line + MARGIN
    return sheet


@dataclasses.dataclass(frozen=True)
class _Cells:
    """How large frames are drawn, at most, how many in a line, and in how many lines those of a clip."""

    height: int
    width: int
    frames: int
    lines: int = 1

    def fit(self, sides: tuple[int, int]) -> tuple[int, int]:
        """Returns (height, width) of a frame of so many pixels; small ones at whole multiples of a pixel."""
        return fit(sides, (self.height, self.width))

    def count(self, strip: Strip) -> int:
        """Returns how many frames of a strip are shown."""
        return min(len(strip.frames), self.frames * self.lines)

    def strip_width(self, strip: Strip) -> int:
        """Returns the width of a strip, with room for what stands above it."""
        return max(min(self.count(strip), self.frames) * (self.width + GAP) - GAP, 150)

    def strip_height(self, strip: Strip) -> int:
        """Returns the height of a strip's frames, in lines one below the other."""
        return -(-self.count(strip) // self.frames) * (self.fit(strip.frames.shape[1:3])[0] + GAP) - GAP

    def row_height(self, row: list[Strip]) -> int:
        """Returns the height of a row, with what stands above it."""
        return CAPTION + max(map(self.strip_height, row)) + 2 * GAP


def _cells(blocks: Sequence[Block], height: int) -> _Cells:
    """Returns cells that what goes into the model fits into; what is above it is fitted in."""
    widest = _Cells(height, round(height * WIDEST), 1)
    rows = [block.rows[-1] for block in blocks if block.rows]
    width = max((widest.fit(strip.frames.shape[1:3])[1] for row in rows for strip in row), default=height)
    frames = max(STRIP // max(map(len, rows), default=1) // (width + GAP), 2)
    return _Cells(height, width, frames, LINES.get(height, 1))


def _width(block: Block, cells: _Cells) -> int:
    rows = (sum(cells.strip_width(strip) + 4 * GAP for strip in row) - 4 * GAP for row in block.rows)
    return max(rows, default=0)


def _draw_block(
    sheet: Sheet, block: Block, number: int, left: int, top: int, width: int, cells: _Cells
) -> None:
    sheet.line(left, top - 7, width)
    used = sheet.text(left, top, f'{number}', 40, size=12, color=PALE) + 8
    used += sheet.text(left + used, top, block.label, (width - used) * 0.6, size=12, weight='bold') + 8
    sheet.text(left + used, top, block.name, width - used, size=11, color=PALE)
    top += TITLE
    for row in block.rows:
        x = left
        for strip in row:
            count, size = cells.count(strip), cells.fit(strip.frames.shape[1:3])
            shown = f', {count} shown' if count < len(strip.frames) and len(row) == 1 else ''
            sheet.text(x, top, strip.caption + shown, cells.strip_width(strip), size=10, color=PALE)
            chosen = np.linspace(0, len(strip.frames) - 1, count).round().astype(int)
            for place, frame in enumerate(strip.frames[chosen]):
                line, column = divmod(place, cells.frames)
                left_edge, top_edge = x + column * (cells.width + GAP), top + CAPTION + line * (size[0] + GAP)
                sheet.picture(left_edge, top_edge, frame, size)
            x += cells.strip_width(strip) + 4 * GAP
        top += cells.row_height(row)


if __name__ == '__main__':
    sys.exit(main())
