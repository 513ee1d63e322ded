"""What may have been meant by a path where nothing is: the trained weights nearby whose name is nearest."""

import difflib
import pathlib
from collections.abc import Iterator

from vivit_jax import paths

ALIKE = 0.6  # of 1: less than that is another name, not a slip
MOST = 3  # named where none is alike
# Files of weights, and what a folder of them has in it.
SUFFIXES = ('.npz', '.safetensors', '.bin', '.pt', '.pth', '.msgpack')
SIGNS = ('checkpoints', 'params', 'model.safetensors', 'pytorch_model.bin')


def hint(path: paths.Path) -> str:
    """Returns how a line that names a wrong path goes on: '; did you mean runs/digits?', or '' if there is nothing.

    Looked at are the neighbours of the path, in the folder nearest to it that there is, and the runs in `runs/`.
    """
    if paths.is_remote(path):
        return ''  # to look around there takes long
    ratios = {
        near: max(_ratio(path.name, near.name), _ratio(str(path), str(near)))
        for near in _weights_near(pathlib.Path(path))
    }
    if not ratios:
        return ''
    ranked = sorted(ratios, key=lambda near: (-ratios[near], str(near)))
    if ratios[ranked[0]] >= ALIKE:
        return f'; did you mean {ranked[0]}?'
    more = ', …' if len(ranked) > MOST else ''
    return f'; there are {", ".join(map(str, ranked[:MOST]))}{more}'


def _weights_near(path: pathlib.Path) -> Iterator[pathlib.Path]:
    parent = path.parent
    while not parent.is_dir() and parent != parent.parent:
        parent = parent.parent
    seen = {path}
    for folder in (parent, pathlib.Path('runs')):
        try:
            neighbours = sorted(folder.iterdir())
        except OSError:
            continue
        for near in neighbours:
            if near not in seen and _holds_weights(near):
                seen.add(near)
                yield near


def _holds_weights(path: pathlib.Path) -> bool:
    if path.suffix in SUFFIXES:
        return path.is_file()
    return any((path / sign).exists() for sign in SIGNS)


def _ratio(one: str, other: str) -> float:
    return difflib.SequenceMatcher(None, one, other).ratio()
