"""A sheet and an animation of one clip: its frames, what of them an answer comes from, and the answer."""

import dataclasses

import numpy as np
from jaxtyping import Float, Int, Shaped, UInt8

from vivit_jax.drawing import INK, PALE, PAPER, Sheet, as_rgb, fit, overlay, resize, spread

# In points.
MARGIN, HEADING, ANSWERS, STRIP = 24, 56, 180, 860
TITLE, BARS, NUMBERS = 20, 44, 13  # what stands above a row, the bars of time, the numbers beneath frames
GAP, BETWEEN = 3, 16  # between frames, and between rows
TALLEST = 110
MOST, ENOUGH = 8, 5  # frames in a row

BAR, TRACK = '#b8375a', '#eceff1'
LEAST_PEAK = 2.0  # times the even share that at least have the full colour, lest noise looks like much

Maps = Float[np.ndarray, 'nt nh nw']


@dataclasses.dataclass(frozen=True)
class Look:
    """What is known of one clip.

    Attributes:
        name: Of the clip.
        explanation: What stands beneath it.
        answers: For each head its name and the most probable classes with their probabilities.
        label: What the clip is labelled with; empty where that is not known.
        frames: Those that tokens are made of, as many as belong to `shares`.
        numbers: Of these frames in the video.
        tubelet: `(t, h, w)` of a token in frames and pixels.
        shares: Of each token in what the answer comes from; adds up to 1.
        time: Of each moment.
        space: Of each place in its frame; None where space has no attention of its own.
        frame: What a frame is called.
        title: Stands above the frames under heat.
    """

    name: str
    explanation: str
    answers: list[tuple[str, list[tuple[str, float]]]]
    label: str
    frames: Shaped[np.ndarray, 't h w c']
    numbers: Int[np.ndarray, ' t']
    tubelet: tuple[int, int, int]
    shares: Maps
    time: Float[np.ndarray, ' nt']
    space: Maps | None
    frame: str = 'frame'
    title: str = 'What the prediction draws on'


def heat(shares: Maps, even: float) -> tuple[Maps, float]:
    """Returns heat in [0, 1]: 0 up to the even share, 1 at the greatest share; and that in even shares.

    Args:
        shares: Of each token.
        even: What each would have if all had the same.
    """
    times = shares / even
    peak = max(float(times.max()), LEAST_PEAK)
    return np.clip((times - 1) / (peak - 1), 0, 1), peak


def draw(look: Look) -> Sheet:
    """Returns the sheet."""
    chosen = _shown(len(look.time), look.tubelet[0])
    columns = len(chosen)
    room = (STRIP - (columns - 1) * GAP) / columns
    cell = fit(look.frames.shape[1:3], (TALLEST, room))
    strip = columns * (cell[1] + GAP) - GAP
    whole, peak = heat(look.shares, 1 / look.shares.size)
    rows = [
        (f'The {look.frame}s as the model gets them', as_rgb(look.frames), 0.0),
        (look.title, _heated(look, whole), peak),
    ]
    if look.space is not None:
        alone, peak = heat(look.space, 1 / look.space[0].size)
        rows.append((f'Space alone, each {look.frame} by itself', _heated(look, alone), peak))
    high = len(rows) * (TITLE + cell[0] + BETWEEN) + NUMBERS + TITLE + BARS
    high = max(high, sum(34 + 28 * len(top) for _, top in look.answers) + 30)
    sheet = Sheet(2 * MARGIN + ANSWERS + MARGIN + strip, MARGIN + HEADING + high + MARGIN)
    sheet.text(MARGIN, MARGIN, look.name, sheet.width - 2 * MARGIN, size=15, weight='bold')
    sheet.text(MARGIN, MARGIN + 23, look.explanation, sheet.width - 2 * MARGIN, size=10, color=PALE)
    _draw_answers(sheet, look, MARGIN, MARGIN + HEADING)
    left, top = MARGIN + ANSWERS + MARGIN, MARGIN + HEADING
    for number, (title, frames, peak) in enumerate(rows):
        sheet.text(left, top, title, strip - 150, size=10, weight='bold')
        if peak:
            _draw_scale(sheet, left + strip, top, peak)
        top += TITLE
        for column, place in enumerate(chosen):
            sheet.picture(left + column * (cell[1] + GAP), top, frames[place], cell)
        top += cell[0]
        if not number:
            for column, place in enumerate(chosen):
                middle = left + column * (cell[1] + GAP) + cell[1] / 2
                sheet.text(middle, top + 3, f'{look.numbers[place]}', cell[1], 'center', size=8, color=PALE)
            top += NUMBERS
        top += BETWEEN
    _draw_time(sheet, look, left, top, strip)
    return sheet


def animate(look: Look, height: int = 256) -> UInt8[np.ndarray, 't h w 3']:
    """Returns frames to play: the clip, beside it the same under heat, beneath them the share of each moment.

    Args:
        look: What is known of the clip.
        height: At least so high a frame is drawn, in pixels; small ones grow by whole multiples.
    """
    frames = as_rgb(look.frames)
    times = max(-(-height // frames.shape[1]), 1)
    sides = times * frames.shape[1], times * frames.shape[2]
    whole, _ = heat(look.shares, 1 / look.shares.size)
    pairs = zip(frames, _heated(look, whole), strict=True)
    gap = 2 * GAP
    played = []
    for number, pair in enumerate(pairs):
        left, right = (resize(frame, *sides) for frame in pair)
        picture = np.full((sides[0] + 40, 2 * sides[1] + gap, 3), 255, np.uint8)
        picture[: sides[0], : sides[1]], picture[: sides[0], sides[1] + gap :] = left, right
        bars = picture[sides[0] + gap :]
        edges = np.linspace(0, bars.shape[1], len(look.time) + 1).round().astype(int)
        for moment, share in enumerate(look.time / look.time.max(initial=1e-9)):
            bar = bars[:, edges[moment] + 1 : edges[moment + 1] - 1]
            bar[:] = _rgb(TRACK)
            now = moment == number // look.tubelet[0]
            bar[len(bar) - round(len(bar) * float(share)) :] = _rgb(BAR if now else '#adb5bd')
        played.append(picture)
    return np.stack(played)


def _shown(moments: int, length: int) -> np.ndarray:
    """Returns the frames that stand in a row, in the middles of equal parts of the clip."""
    each = max(min(length, MOST // moments), 1)
    # Better fewer than out of step with the bars of time beneath.
    even = max(count for count in range(1, MOST + 1) if moments % count == 0)
    count = even if even >= min(ENOUGH, moments) else MOST
    at = ((np.arange(count) + 0.5) * moments / count).astype(int)
    within = ((np.arange(each) + 0.5) * length / each).astype(int)
    return (at[:, None] * length + within).ravel()


def _heated(look: Look, tokens: Maps) -> UInt8[np.ndarray, 't h w 3']:
    """Returns the frames in grey, so that all colour is heat."""
    grey = as_rgb(look.frames).mean(-1, keepdims=True).round().astype(np.uint8)
    return overlay(grey, spread(tokens, look.tubelet, grey.shape[:3]))


def _draw_answers(sheet: Sheet, look: Look, left: float, top: float) -> None:
    for head, answers in look.answers:
        sheet.text(left, top, head, ANSWERS, size=10, weight='bold')
        top += TITLE + 4
        for name, probability in answers:
            sheet.text(left, top, name, ANSWERS - 48, size=10)
            sheet.text(left + ANSWERS, top, _percent(probability), 46, 'right', size=10, color=PALE)
            sheet.box(left, top + 15, ANSWERS, 4, TRACK)
            sheet.box(left, top + 15, max(ANSWERS * probability, 0.5), 4, '#495057')
            top += 28
        top += 10
    if look.label:
        sheet.text(left, top - 4, f'labelled {look.label}', ANSWERS, size=10, color=PALE)


def _draw_scale(sheet: Sheet, right: float, top: float, peak: float) -> None:
    """Draws the colours of heat as they lie on grey, with what they stand for."""
    grey = np.full((1, 4, 200, 1), 128, np.uint8)
    ramp = np.broadcast_to(np.linspace(0, 1, 200, dtype=np.float32), (1, 4, 200))
    used = sheet.text(right, top + 2, f'{peak:.1f} times', 80, 'right', size=8, color=PALE) + 5
    sheet.picture(right - used - 70, top + 3, overlay(grey, ramp)[0], (7, 70))
    sheet.text(right - used - 75, top + 2, 'even share', 80, 'right', size=8, color=PALE)


def _draw_time(sheet: Sheet, look: Look, left: float, top: float, width: float) -> None:
    """Draws the share of each moment beneath its frames."""
    along = 'Depth' if look.frame == 'slice' else 'Time'
    title = f'{along} alone' if look.space is not None else f'Share over the {look.frame}s'
    sheet.text(left, top, title, width, size=10, weight='bold')
    even = 1 / len(look.time)
    dashes = {'color': INK, 'linestyle': (0, (3, 3)), 'linewidth': 1.2}
    used = (
        sheet.text(left + width, top + 2, f'even share, {_percent(even)}', 120, 'right', size=8, color=PALE)
        + 5
    )
    sheet.line(left + width - used - 22, top + 7, 22, **dashes)
    top += TITLE
    step = (width + GAP) / len(look.time)
    scale = BARS / max(float(look.time.max()), 1.25 * even)
    for moment, share in enumerate(look.time.tolist()):
        x = left + moment * step
        sheet.box(x, top, step - GAP, BARS, TRACK)
        sheet.box(x, top + BARS - share * scale, step - GAP, share * scale, BAR)
        if step > 36:
            bar, line = BARS - share * scale, BARS - even * scale
            inside = BARS - bar >= 16
            places = (BARS - 14, bar + 3) if inside else (bar - 14, line - 14, line + 3)
            clear = next((y for y in places if y >= 0 and not y - 1 < line < y + 12), places[0])
            sheet.text(x + 4, top + clear, _percent(share), step, size=8, color=PAPER if inside else PALE)
    sheet.line(left, top + BARS - even * scale, width, **dashes)


def _percent(share: float) -> str:
    return f'{100 * share:.1f} %'


def _rgb(colour: str) -> tuple[int, ...]:
    return tuple(bytes.fromhex(colour[1:]))
