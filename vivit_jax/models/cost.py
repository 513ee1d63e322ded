"""What a model costs: multiply-adds of one clip, and parameters, counted by formula."""

import math

from vivit_jax.models.attention import Grid, groups
from vivit_jax.models.embed import token_grid
from vivit_jax.models.encoder import INPUTS
from vivit_jax.models.patterns import pattern_of
from vivit_jax.models.vivit import ViViT, reads_first


def multiply_adds(
    model: ViViT, clip: tuple[int, int, int, int], *, logits_alone: bool = False, train: bool = True
) -> int:
    """Counts the multiply-adds of one forward pass over one clip, as the paper's GFLOPs do (table 2).

    Counted are the matrix products: embedding, projections, attention, MLPs and heads. A token costs 4 d² in
    the projections of an attention (5 d² where another follows), 2 d m in the MLP (3 d m if gated) and, for each
    token that it attends to, 2 d.

    Args:
        model: The model.
        clip: `(frames, height, width, channels)`.
        logits_alone: Leaves out what a compiled program leaves out that returns nothing but logits: all tokens of the
            last block that are not classified.
        train: Whether that is a training step's, which with dropout leaves nothing out.

    Returns:
        Multiply-adds; twice as many floating-point operations. A training step takes about three times as
        many: forward once, backward twice.

    Raises:
        ValueError: If the tubelet does not fit the clip, or the attention's pattern its tokens.
    """
    grid = _grid(model, clip)
    embedding = math.prod(grid) * math.prod(model.tubelet) * clip[3] * model.width
    encoders = sum(times * layers * _block(model, part) for times, layers, part in _encoders(model, grid))
    if logits_alone:
        encoders -= sum(times * _unread(model, part, train) for times, _, part in _encoders(model, grid))
    features = model.representation_size or model.width
    head = model.width * model.representation_size + features * model.num_classes
    return embedding + encoders + head


def parameters(model: ViViT, clip: tuple[int, int, int, int]) -> int:
    """Counts the parameters of a model for clips of one size.

    Args:
        model: The model.
        clip: `(frames, height, width, channels)`, on which learned positions and the embedding depend.

    Raises:
        ValueError: If the tubelet does not fit the clip.
    """
    pattern, d = pattern_of(model.attention, model.attention_order), model.width
    norm, cls = 2 * d, _num_cls(model)
    hidden = INPUTS[model.activation] * model.mlp_dim
    mlp = norm + (d * hidden + hidden) + (model.mlp_dim * d + d)
    block = mlp + sum(norm + (4 + (over in pattern.projected)) * (d * d + d) for over in pattern.attends)
    total = math.prod(model.tubelet) * clip[3] * d + d
    for _, layers, (nt, nh, nw) in _encoders(model, _grid(model, clip)):
        positions = {'learned': cls + nt * nh * nw, 'learned_space_time': cls + nh * nw + nt}
        total += cls * d + positions.get(model.position_embedding, 0) * d
        total += layers * block + model.final_norm * norm
    if model.representation_size:
        total += (d + 1) * model.representation_size
    return total + ((model.representation_size or d) + 1) * model.num_classes


def _grid(model: ViViT, clip: tuple[int, int, int, int]) -> Grid:
    return token_grid((model.sampled_frames or clip[0], *clip[1:3]), model.tubelet, model.remainder)


def _num_cls(model: ViViT) -> int:
    return int(model.classifier == 'token')


def _encoders(model: ViViT, grid: Grid) -> list[tuple[int, int, Grid]]:
    """Returns of each encoder how often it runs, its layers, and the grid of its tokens."""
    if model.attention != 'factorised_encoder':
        return [(1, model.num_layers, grid)]
    nt, nh, nw = grid
    spatial, temporal = (nt, model.num_layers, (1, nh, nw)), (1, model.temporal_layers, (nt, 1, 1))
    return [spatial, temporal] if model.temporal_layers else [spatial]


def _unread(model: ViViT, grid: Grid, train: bool) -> int:
    """Multiply-adds of the last block that nothing depends on: queries on, all of them but the first token's."""
    if not reads_first(model, train=train):
        return 0
    tokens, d = math.prod(grid) + _num_cls(model), model.width
    each = 2 * d**2 + 2 * d * tokens + (INPUTS[model.activation] + 1) * d * model.mlp_dim
    return (tokens - 1) * each


def _block(model: ViViT, grid: Grid) -> int:
    """Multiply-adds of one block."""
    pattern, d = pattern_of(model.attention, model.attention_order), model.width
    tokens = math.prod(grid)
    total = (tokens + _num_cls(model)) * (INPUTS[model.activation] + 1) * d * model.mlp_dim
    for over in pattern.attends:
        cls = _num_cls(model) if over in pattern.cls else 0
        total += (tokens + cls) * 4 * d**2
        total += tokens * d**2 if over in pattern.projected else 0
        # Half of the heads for either have half of the width together.
        axes = ('time', 'space') if over == 'time_and_space' else (over,)
        for axis in axes:
            count, size = groups(axis, grid).shape
            total += count * (size + cls) ** 2 * 2 * d // len(axes)
    return total
