"""What a model says of a long video over its time, as a picture."""

import dataclasses
import io
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from vivit_jax import paths
from vivit_jax.telling.printable import printable

MOST_TRACKS = 24  # in a picture
MOST_CLASSES = 6  # in a track
LEAST = 0.05  # probability that is worth a line
MOST_MARKS = 200  # of the windows of a track
LETTERS = 30  # of a class name
# Of Okabe and Ito, told apart by the colour-blind too (jfly.uni-koeln.de/color), without the yellow, pale on white.
COLOURS = ('#0072b2', '#d55e00', '#009e73', '#cc79a7', '#56b4e9', '#e69f00')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Track:
    """One head's view of one video.

    Attributes:
        title: What stands above it.
        starts: Of the windows, in seconds, rising.
        ends: Of the windows, in seconds.
        probabilities: Of the classes in each window, in [0, 1].
        class_names: Of the classes.
    """

    title: str
    starts: Float[np.ndarray, ' n']
    ends: Float[np.ndarray, ' n']
    probabilities: Float[np.ndarray, 'n k']
    class_names: Sequence[str]


class Tracks:
    """Collects what is drawn of each file, window by window."""

    def __init__(self, heads: Mapping[str, slice], class_names: Sequence[str]):
        """Begins.

        Args:
            heads: Where the classes of each head are.
            class_names: Of all heads.
        """
        self._heads, self._class_names = heads, class_names
        self._windows: dict[str, list[tuple[tuple[float, float], Float[np.ndarray, ' k']]]] = {}
        self._titles: dict[str, str] = {}
        self._left_out: set[str] = set()

    def add(
        self, name: str, file: str, span: tuple[float, float], probabilities: Float[np.ndarray, ' k']
    ) -> None:
        """Adds a window, unless there are more files than can be drawn.

        Args:
            name: Of the window, which begins with that of its file.
            file: Tells files apart.
            span: Where it begins and ends, in seconds.
            probabilities: Of all classes.
        """
        if file not in self._windows and len(self._windows) == MOST_TRACKS:
            self._left_out.add(file)
        else:
            self._windows.setdefault(file, []).append((span, probabilities))
            self._titles.setdefault(file, name.rpartition('#t=')[0])

    def write(self, path: paths.Path) -> None:
        """Draws what there is, if there is anything."""
        tracks = []
        for file, windows in self._windows.items():
            windows.sort(key=lambda window: window[0])
            spans = np.array([span for span, _ in windows])
            probabilities = np.stack([values for _, values in windows])
            for head, part in self._heads.items():
                track = Track(
                    title=printable(self._titles[file]) + (f' ({head})' if len(self._heads) > 1 else ''),
                    starts=spans[:, 0],
                    ends=spans[:, 1],
                    probabilities=probabilities[:, part],
                    class_names=self._class_names[part],
                )
                tracks.append(track)
        if tracks:
            path.write_bytes(draw(tracks))
        if self._left_out:
            warnings.warn(
                f'{path} shows the first {MOST_TRACKS} files, not {len(self._left_out)} more', stacklevel=2
            )


def draw(tracks: Sequence[Track]) -> bytes:
    """Draws the probabilities of the most probable classes over time, a track below another.

    A window's probability stands at its middle; before the first and after the last it goes on level.

    Args:
        tracks: At least one; of more than `MOST_TRACKS` the first are drawn.

    Returns:
        A PNG file.
    """
    from matplotlib.figure import Figure

    shown = tracks[:MOST_TRACKS]
    figure = Figure(figsize=(10, 0.4 + 1.9 * len(shown)), layout='constrained')
    axes = figure.subplots(len(shown), 1, squeeze=False)[:, 0]
    for axis, track in zip(axes, shown, strict=True):
        of_head = [other for other in shown if other.class_names == track.class_names]
        _draw_track(axis, track, _colours(of_head))
    axes[-1].set_xlabel('seconds')
    figure.supylabel('probability', fontsize=10)
    content = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings('ignore', 'Glyph')  # of scripts that the font does not have
        figure.savefig(content, format='png', dpi=100)
    return content.getvalue()


def leading(probabilities: Float[np.ndarray, 'n k']) -> list[int]:
    """Returns the classes that reach the highest probability in any window, highest first.

    At most `MOST_CLASSES`, and besides the first only those that reach `LEAST`.
    """
    highest = probabilities.max(0)
    best = np.argsort(-highest, kind='stable')[:MOST_CLASSES].tolist()
    return [place for rank, place in enumerate(best) if not rank or highest[place] >= LEAST]


def _colours(tracks: Sequence[Track]) -> dict[str, str]:
    """Returns the colour of each class in all tracks of a head; nothing where there are more classes than colours."""
    names = dict.fromkeys(
        track.class_names[place] for track in tracks for place in leading(track.probabilities)
    )
    return dict(zip(names, COLOURS, strict=False)) if len(names) <= len(COLOURS) else {}


def _draw_track(axis: Any, track: Track, everywhere: Mapping[str, str]) -> None:
    middles = (track.starts + track.ends) / 2
    times = np.concatenate([track.starts[:1], middles, track.ends[-1:]])
    marked = range(1, len(times) - 1)
    # In the order in which they have their time, as the lines have.
    best = sorted(leading(track.probabilities), key=lambda place: int(track.probabilities[:, place].argmax()))
    for own, place in zip(COLOURS, best, strict=False):
        values = np.pad(track.probabilities[:, place], 1, mode='edge')
        colour = everywhere[track.class_names[place]] if everywhere else own
        marker = '.' if len(times) < MOST_MARKS else ''
        axis.plot(times, values, color=colour, linewidth=1.8, marker=marker, markevery=marked)
    axis.set(xlim=(times[0], times[-1]), ylim=(-0.03, 1.03), yticks=(0, 0.5, 1))
    axis.grid(alpha=0.3)
    axis.spines[['top', 'right']].set_visible(False)
    axis.set_title(track.title, loc='left', fontsize=10, parse_math=False)
    names = [_short(track.class_names[place]) for place in best]
    legend = axis.legend(
        axis.get_lines(), names, loc='center left', bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize=9
    )
    for text, name in zip(legend.get_texts(), names, strict=True):
        text.set_parse_math(False)
        text.set_text(name)


def _short(name: str) -> str:
    name = name if len(name) <= LETTERS else name[: LETTERS - 1] + '…'
    return f' {name}' if name.startswith('_') else name  # which would be left out of a legend
