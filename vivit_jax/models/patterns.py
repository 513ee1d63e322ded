"""The family of models, each as a pattern: along what the attentions of a block look, in which order."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Pattern:
    """What the attentions of a block look over.

    Attributes:
        attends: Each attention of the block, in order, by what it looks over: a key of `attention.FOLDS`, 'all'
            tokens at once, or 'time_and_space' with half of the heads each. The MLP comes after them.
        cls: Those in which a cls token takes part; there can be none where this is empty. It belongs to every
            group of tokens that attend to one another: seen by all of them, seeing each in turn, and averaged
            over them. Where it takes no part it stays as it is.
        projected: Those followed by one more linear map that starts at zero, so that a fresh block is the one
            without them.
    """

    attends: tuple[str, ...]
    cls: tuple[str, ...] = ()
    projected: tuple[str, ...] = ()


PATTERNS = {
    # ViViT (Arnab et al., ICCV 2021, section 3.3), Models 1 to 4. The factorised encoder runs Model 1's block
    # over the tokens of each frame, then over the frames.
    'spatio_temporal': Pattern(('all',), cls=('all',)),
    'factorised_encoder': Pattern(('all',), cls=('all',)),
    'factorised_self_attention': Pattern(('space', 'time')),
    'factorised_dot_product': Pattern(('time_and_space',)),
    # TimeSformer (Bertasius et al., ICML 2021, section 3 and figure 1).
    'divided': Pattern(('time', 'space'), cls=('space',), projected=('time',)),
    'space_only': Pattern(('space',)),
    'axial': Pattern(('time', 'height', 'width')),
    'local_global': Pattern(('window', 'grid')),
}
ATTENTIONS = tuple(PATTERNS)
ATTENTION_ORDERS = ('space_time', 'time_space')


def pattern_of(attention: str, attention_order: str) -> Pattern:
    """Returns the pattern of a model.

    Args:
        attention: One of `ATTENTIONS`.
        attention_order: One of `ATTENTION_ORDERS`, which factorised self-attention leaves open.
    """
    pattern = PATTERNS[attention]
    if attention == 'factorised_self_attention':
        return dataclasses.replace(pattern, attends=tuple(attention_order.split('_')))
    return pattern
