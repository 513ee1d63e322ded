"""Measures how much of attention rollout lies on the moving digit, by how much of the clip the digit is.

The rollout of a clip gives each token a share, and here each pixel of it the same. What of it lies on
pixels that are not black, divided by their share of all pixels, is 1 where attention does not care where the digit
is; `at most` it is what the token with most of the digit would have. Mean and standard deviation over the clips of a
split, for each way to make the heads of an attention one (docs/rollout.md).

examples:
  python tools/rollout_share.py runs/moving_digits --untrained
"""

import dataclasses
import sys
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange, reduce
from jaxtyping import Float64, Shaped

import vivit_jax
from vivit_jax import evaluate, experiment, help_text, rollout
from vivit_jax.inference import Predictor
from vivit_jax.telling.printable import printable

BATCH = 64


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    parser = help_text.parser(__doc__)
    parser.add_argument('runs', nargs='+', metavar='RUN', help='a run of configs/moving_digits.py')
    parser.add_argument('--split', default='test', metavar='NAME', help='default %(default)s')
    parser.add_argument(
        '--untrained', action='store_true', help='of each run also its model with fresh parameters'
    )
    parsed = parser.parse_args(arguments)
    print('| run | model | clips | accuracy |', *(f'{name} |' for name in rollout.FUSIONS), 'at most |')
    print('|', ' --- |' * (5 + len(rollout.FUSIONS)), sep='')
    try:
        for run in parsed.runs:
            model = vivit_jax.load(run)
            _report(run, model, parsed.split)
            if parsed.untrained:
                fresh = model.model.init(
                    jax.random.key(0), jnp.zeros((1, *experiment.clip_shape(model.config)))
                )
                _report(f'{run}, untrained', dataclasses.replace(model, params=fresh['params']), parsed.split)
    except (ValueError, OSError) as error:
        print(printable(f'error: {error}'), file=sys.stderr)
        return 2
    return 0


def _report(name: str, model: Predictor, split: str) -> None:
    ratios, right = measure(model, split)
    # A fresh head is 0, and gradients through it are.
    cells = [
        f'{values.mean():.2f} ± {values.std():.2f}' if values.any() else '–' for values in ratios.values()
    ]
    row = [name, f'`{model.model.attention}`', len(right), f'{right.mean():.4f}', *cells]
    print('|', *(f'{cell} |' for cell in row), flush=True)


def measure(model: Predictor, split: str) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Returns for each fusion, and for the most that there can be, the ratio of each clip; and where it was right.

    Raises:
        ValueError: If the run is of other data.
    """
    if model.config.data.source != 'moving_digits':
        raise ValueError(
            f'{model.folder}: of data.source={model.config.data.source!r}, which does not tell where its subject is; '
            "give runs of 'moving_digits'"
        )
    found: dict[str, list[np.ndarray]] = {name: [] for name in (*rollout.FUSIONS, 'most')}
    right = []
    for clips, labels in _batches(model, split):
        for fusion in rollout.FUSIONS:
            video = evaluate.to_float(jnp.asarray(clips))
            shares, logits = rollout.on_clips(model.model, model.params, video, fusion=fusion)
            lit = lit_pixels(clips, shares.map.shape[1:])
            found[fusion].append(ratio(shares.map.astype(np.float64), lit))
        area = reduce(lit, 'b ... -> b', 'mean')
        found['most'].append(reduce(lit, 'b ... -> b', 'max') / area)
        right.append(logits.argmax(1) == labels)
    return {name: np.concatenate(values) for name, values in found.items()}, np.concatenate(right)


def _batches(model: Predictor, split: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    source = experiment.make_source(model.config, split)
    for first in range(0, len(source), BATCH):
        records = [source[index] for index in range(first, min(first + BATCH, len(source)))]
        yield np.stack([model.clip(record) for record in records]), np.array([r.label for r in records])


def lit_pixels(
    clips: Shaped[np.ndarray, 'b t h w 1'], grid: tuple[int, ...]
) -> Float64[np.ndarray, 'b nt nh nw']:
    """Returns the share of each token's pixels that are not black."""
    nt, nh, nw = grid
    tokens = rearrange(clips > 0, 'b (nt t) (nh h) (nw w) 1 -> b nt nh nw (t h w)', nt=nt, nh=nh, nw=nw)
    return tokens.mean(-1)


def ratio(
    shares: Float64[np.ndarray, 'b nt nh nw'], lit: Float64[np.ndarray, 'b nt nh nw']
) -> Float64[np.ndarray, ' b']:
    """Returns the share that lies on lit pixels, divided by the share of pixels that are lit."""
    return reduce(shares * lit, 'b ... -> b', 'sum') / reduce(lit, 'b ... -> b', 'mean')


if __name__ == '__main__':
    sys.exit(main())
