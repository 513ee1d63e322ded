"""What a model costs: multiply-adds of one clip, counted by formula."""

import math

from vivit_jax.models.embed import token_grid
from vivit_jax.models.vivit import ViViT


def multiply_adds(model: ViViT, clip: tuple[int, int, int, int]) -> int:
    """Counts the multiply-adds of one forward pass over one clip, as the paper's GFLOPs do (table 2).

    Counted are the matrix products: embedding, projections, attention, MLPs and heads. A token costs 4 d² in
    the projections of an attention, 2 d m in the MLP and, for each token that it attends to, 2 d.

    Args:
        model: The model.
        clip: `(frames, height, width, channels)`.

    Returns:
        Multiply-adds; twice as many floating-point operations. A training step takes about three times as
        many: forward once, backward twice.

    Raises:
        ValueError: If the tubelet does not fit the clip.
    """
    frames, height, width, channels = clip
    frames = model.sampled_frames or frames
    nt, nh, nw = token_grid((frames, height, width), model.tubelet, model.remainder)
    tokens, space = nt * nh * nw, nh * nw
    cls = int(model.classifier == 'token')
    embedding = tokens * math.prod(model.tubelet) * channels * model.width
    if model.attention == 'factorised_encoder':
        spatial = nt * _encoder(model, model.num_layers, space + cls, space + cls)
        encoders = spatial + _encoder(model, model.temporal_layers, nt + cls, nt + cls)
    elif model.attention == 'factorised_self_attention':
        # Attending over space, then over time, with projections for each.
        second = model.num_layers * tokens * 4 * model.width**2
        encoders = _encoder(model, model.num_layers, tokens, space + nt) + second
    elif model.attention == 'factorised_dot_product':
        # Half of the heads, each of half the width together, for either axis.
        encoders = _encoder(model, model.num_layers, tokens, (space + nt) / 2)
    else:
        encoders = _encoder(model, model.num_layers, tokens + cls, tokens + cls)
    features = model.representation_size or model.width
    head = model.width * model.representation_size + features * model.num_classes
    return round(embedding + encoders + head)


def _encoder(model: ViViT, num_layers: int, tokens: int, attended: float) -> float:
    """Multiply-adds of `num_layers` blocks over `tokens` tokens, each attending to `attended` others."""
    d = model.width
    return num_layers * tokens * (4 * d**2 + 2 * d * model.mlp_dim + 2 * d * attended)
