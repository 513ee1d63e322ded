"""Which parameters learn, and how fast: a factor of the schedule's learning rate for each of them, 0 for frozen ones.

Fine-tuning moves what was learnt before less than what is new: lower layers by smaller steps (layer-wise decay, Clark
et al. 2020, ELECTRA, appendix; for vision Bao et al. 2022, BEiT), the new head by larger ones.
"""

import difflib
import fnmatch
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

TRAIN = ('all', 'head')
HEAD = ('pre_logits', 'output_projection')


def learning_rate_factors(
    params: Any, *, train: str, freeze: str, layer_decay: float, head_rate: float
) -> dict[str, Any]:
    """Returns what the learning rate of every parameter is multiplied by.

    factor(w) = layer_decay^(S + T + 1 - depth(w)), times head_rate for the head, 0 where frozen

    with S blocks in the first encoder (the only one, but for the factorised encoder) and T in the temporal encoder
    (0 without). With B blocks below an encoder (0, or S below the temporal one) the depth is

    - B for what makes its input: cls token, position embeddings and, for the first encoder, the tubelet embedding;
    - B + i + 1 for its block i;
    - that of its last block for its final LayerNorm;
    - S + T + 1 for the head (`output_projection`, `pre_logits`).

    Args:
        params: The model's parameters, or their shapes.
        train: 'all', or 'head' to freeze everything else (a linear probe).
        freeze: Patterns of names to freeze, separated by commas, as
            'embedding/*,SpatialTransformer/encoderblock_[0-5]/*'; '*' stands for anything, slashes included. ''
            freezes nothing.
        layer_decay: In (0, 1]; 1 for the same rate everywhere.
        head_rate: Factor of the head's rate, at least 0.

    Returns:
        The same tree, of floats.

    Raises:
        ValueError: If a pattern matches no parameter, or nothing is left to learn.
    """
    tree = _names(params)
    names = jax.tree.leaves(tree)
    patterns = [pattern.strip() for pattern in freeze.split(',') if pattern.strip()]
    for pattern in patterns:
        if not any(fnmatch.fnmatchcase(name, pattern) for name in names):
            raise ValueError(
                f'optimizer.freeze={freeze!r}: {pattern!r} matches none of the {len(names)} parameters, as '
                f'{", ".join(_examples(pattern, names))}'
            )
    layers = _layers(names)
    highest = sum(layers) + 1

    def one(name: str) -> float:
        in_head = name.split('/')[0] in HEAD
        if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns) or (
            train == 'head' and not in_head
        ):
            return 0.0
        return layer_decay ** (highest - _depth(name, layers)) * (head_rate if in_head else 1.0)

    factors = jax.tree.map(one, tree)
    if not any(jax.tree.leaves(factors)):
        raise ValueError(
            f'optimizer.train={train!r}, optimizer.freeze={freeze!r} and optimizer.head_rate={head_rate} leave '
            'nothing to learn'
        )
    return factors


def _names(params: Any) -> Any:
    """Returns the tree with every leaf's name in its place, as 'embedding/kernel'."""
    return jax.tree_util.tree_map_with_path(lambda path, _: '/'.join(key.key for key in path), params)


def _examples(pattern: str, names: list[str]) -> list[str]:
    """Returns a few names to learn the right pattern from: the nearest, then one of each module."""
    near = difflib.get_close_matches(pattern.replace('*', ''), names, n=1, cutoff=0.5)
    return list(dict.fromkeys([*near, *{name.split('/')[0]: name for name in reversed(names)}.values()]))[:5]


def _layers(names: list[str]) -> tuple[int, int]:
    """Returns the blocks of the first encoder and of the temporal one."""
    blocks = {'/'.join(name.split('/')[:2]) for name in names if '/encoderblock_' in name}
    temporal = sum(block.startswith('TemporalTransformer/') for block in blocks)
    return len(blocks) - temporal, temporal


def _depth(name: str, layers: tuple[int, int]) -> int:
    """Returns how far above the pixels a parameter lies, see `learning_rate_factors`."""
    first, temporal = layers
    module, *rest = name.split('/')
    if module in HEAD:
        return first + temporal + 1
    below, own = (first, temporal) if module.endswith('TemporalTransformer') else (0, first)
    if rest and rest[0].startswith('encoderblock_'):
        return below + int(rest[0].removeprefix('encoderblock_')) + 1
    return below + own if rest and rest[0] == 'encoder_norm' else below


def scale_updates(
    optimizer: optax.GradientTransformation, factors_of: Callable[[Any], Any]
) -> optax.GradientTransformation:
    """Gives every parameter a learning rate of its own.

    A factor multiplies the whole update, so that it acts on decoupled weight decay too, as on a learning rate. To
    the optimiser frozen parameters do not exist: it keeps no state for them, they take no part in the gradient's
    norm and in its clipping, and nothing decays them.

    Args:
        optimizer: Any; its updates are multiplied.
        factors_of: Gives the factors of a tree of parameters, as `learning_rate_factors`.

    Returns:
        A transformation whose updates of frozen parameters are zeros.
    """

    def learns(params: Any) -> Any:
        return jax.tree.map(bool, factors_of(params))

    def scale(updates: Any, params: Any) -> Any:
        del params
        return jax.tree.map(lambda f, u: f * u if f else jnp.zeros_like(u), factors_of(updates), updates)

    return optax.chain(optax.masked(optimizer, learns), optax.stateless(scale))


class Group(NamedTuple):
    """Parameters that lie together and learn at one rate.

    Attributes:
        name: The modules, as 'embedding' or 'Transformer/encoderblock_0 … encoderblock_11'.
        parameters: How many numbers.
        factor: Of the learning rate.
    """

    name: str
    parameters: int
    factor: float


def groups(params: Any, factors: Any) -> list[Group]:
    """Tells what learns and how fast, from the pixels to the head, in as few groups as that takes.

    Args:
        params: Arrays or their shapes.
        factors: See `learning_rate_factors`.
    """
    modules: dict[str, dict[float, int]] = {}
    names = jax.tree.leaves(_names(params))
    for name, leaf, factor in zip(names, jax.tree.leaves(params), jax.tree.leaves(factors), strict=True):
        path = name.split('/')
        of = modules.setdefault('/'.join(path[: 2 if path[0].endswith('Transformer') else 1]), {})
        of[factor] = of.get(factor, 0) + leaf.size
    order = sorted(modules, key=functools.partial(_place, layers=_layers(names)))
    # Neighbours of the same rates are told as one.
    rows: list[tuple[str, str, dict[float, int]]] = []
    for name in order:
        if rows and rows[-1][2].keys() == modules[name].keys():
            first, _, before = rows.pop()
            rows.append((first, name, {factor: before[factor] + modules[name][factor] for factor in before}))
        else:
            rows.append((name, name, modules[name]))
    return [
        Group(_span(first, last), size, factor)
        for first, last, sizes in rows
        for factor, size in sorted(sizes.items(), reverse=True)
    ]


def table(params: Any, factors: Any, learning_rate: float) -> list[str]:
    """Returns lines for people: what learns, of how many parameters, with which learning rate.

    Args:
        params: Arrays or their shapes.
        factors: See `learning_rate_factors`.
        learning_rate: The schedule's highest.
    """
    rows = groups(params, factors)
    learning, total = sum(row.parameters for row in rows if row.factor), sum(row.parameters for row in rows)
    width, digits = max(len(row.name) for row in rows), len(f'{total:,}')
    lines = [f'{learning:,} of {total:,} parameters, with these rates at their highest']
    for name, size, factor in rows:
        rate = f'{learning_rate * factor:.2e}' if factor else 'frozen'
        lines.append(f'{name:<{width}}  {size:>{digits},}  {rate:>8}')
    return lines


def _place(module: str, layers: tuple[int, int]) -> tuple[int, int]:
    """Orders modules from the pixels to the head."""
    within = (
        'embedding',
        'encoderblock',
        'encoder_norm',
        'cls',
        'posembed',
        'pre_logits',
        'output_projection',
    )
    last = module.split('/')[-1]
    return _depth(module, layers), next(i for i, start in enumerate(within) if last.startswith(start))


def _span(first: str, last: str) -> str:
    """Names a row of modules by its ends, the encoder once if it is the same."""
    if first == last:
        return first
    encoder = first.rpartition('/')[0]
    return f'{first} … {last.removeprefix(f"{encoder}/") if encoder else last}'
