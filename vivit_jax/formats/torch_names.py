"""Names and axes of ViViT's parameters in PyTorch and here: one table, read in both directions.

The names are those that Hugging Face writes into files (transformers calls some of them otherwise in memory since
version 5); those of the factorised encoder have `spatial.` and `temporal.` before them instead of `vivit.`. A linear
layer of PyTorch keeps its matrix as `[outputs inputs]`, ours as `[inputs outputs]`, with one side split into heads
around attention; a convolution of PyTorch has `[outputs channels …]`.
"""

import dataclasses
import re

import numpy as np
from einops import EinopsError, rearrange

from vivit_jax.formats.weights import Conversion
from vivit_jax.models.patterns import pattern_of
from vivit_jax.models.vivit import ViViT

TUBELET = 't h w c d -> d c t h w'
FRAME = 'h w c d -> d c 1 h w'  # uniform frame sampling: our kernel is an image's, the convolution has a time axis
IMAGE = '1 h w c d -> d c h w'  # an image ViT, which here is a tubelet of one frame


@dataclasses.dataclass(frozen=True)
class Pair:
    """A parameter under both names.

    Attributes:
        theirs: PyTorch's name, with dots.
        ours: Our name, with slashes.
        axes: From our axes to theirs, for einops; '' where they are the same.
        heads: Size of the axis `h` in `axes`, where it stands for attention heads.
    """

    theirs: str
    ours: str
    axes: str = ''
    heads: int = 0

    def to_theirs(self, array: np.ndarray) -> np.ndarray:
        """Returns our array as PyTorch has it."""
        return np.ascontiguousarray(rearrange(array, self.axes) if self.axes else array)

    def to_ours(self, array: np.ndarray) -> np.ndarray:
        """Returns PyTorch's array as we have it.

        Raises:
            ValueError: If it has another number of axes, or the heads do not divide one.
        """
        if not self.axes:
            return array
        try:
            return rearrange(array, self._back(), **({'h': self.heads} if self.heads else {}))
        except EinopsError as error:
            raise ValueError(
                f'{self.theirs} is {array.shape}, which cannot be rearranged as {self._back()}'
                + (f' with {self.heads} heads' if self.heads else '')
            ) from error

    def _back(self) -> str:
        ours, theirs = self.axes.split(' -> ')
        return f'{theirs} -> {ours}'

    def take(self, conversion: Conversion, name: str, rows: slice = slice(None)) -> None:
        """Takes the file's array `name`, or rows of it, as our parameter."""
        how = f'transposed {self._back()}' if self.axes else 'copied'
        if rows != slice(None):
            how = f'rows {rows.start} to {rows.stop - 1}, {how}'
        try:
            conversion.take(name, self.ours, lambda array: self.to_ours(array[rows]), how)
        except ValueError as error:
            # What the conversion itself says begins with the file already.
            text = str(error)
            raise ValueError(
                text if text.startswith(conversion.path) else f'{conversion.path}: {text}'
            ) from None


def classic(name: str) -> str:
    """Returns the name in the files of Hugging Face for one of either kind, without a `vit.` or `vivit.` before it.

    The model in memory calls the parts otherwise since transformers 5, which shows where `state_dict()` was saved
    itself.
    """
    name = re.sub(r'^(vit|vivit)\.', '', name)
    name = re.sub(r'^layers\.(\d+)\.', r'encoder.layer.\1.', name)
    for part, long in (('q', 'query'), ('k', 'key'), ('v', 'value')):
        name = name.replace(f'.attention.{part}_proj.', f'.attention.attention.{long}.')
    name = name.replace('.attention.o_proj.', '.attention.output.dense.')
    return name.replace('.mlp.fc1.', '.intermediate.dense.').replace('.mlp.fc2.', '.output.dense.')


def pairs(vivit: ViViT, embedding: str = '') -> list[Pair]:
    """Returns every parameter of a model under both names.

    Args:
        vivit: The model.
        embedding: Axes of the embedding's kernel where it is not a convolution over time and space: `IMAGE`.

    Returns:
        One pair a parameter, in the order of the model.
    """
    kernel = embedding or (FRAME if vivit.embedding == 'uniform_frame_sampling' else TUBELET)
    factorised = vivit.attention == 'factorised_encoder'
    projection = f'{"spatial" if factorised else "vivit"}.embeddings.patch_embeddings.projection'
    rows = [
        Pair(f'{projection}.weight', 'embedding/kernel', kernel),
        Pair(f'{projection}.bias', 'embedding/bias'),
    ]
    if factorised:
        rows += _encoder(vivit, 'spatial.', 'SpatialTransformer', '_SpatialTransformer', vivit.num_layers)
        if vivit.temporal_layers:
            rows += _encoder(
                vivit, 'temporal.', 'TemporalTransformer', '_TemporalTransformer', vivit.temporal_layers
            )
    else:
        rows += _encoder(vivit, 'vivit.', 'Transformer', '', vivit.num_layers)
    if vivit.representation_size:
        rows += _dense('pooler.dense', 'pre_logits')
    if vivit.num_classes:
        rows += _dense('classifier', 'output_projection')
    return rows


def _encoder(vivit: ViViT, theirs: str, ours: str, cls_suffix: str, num_layers: int) -> list[Pair]:
    rows = []
    if vivit.classifier == 'token':
        rows.append(Pair(f'{theirs}embeddings.cls_token', f'cls{cls_suffix}'))
    if vivit.position_embedding.startswith('learned'):
        rows.append(Pair(f'{theirs}embeddings.position_embeddings', f'{ours}/posembed_input/pos_embedding'))
    if vivit.position_embedding == 'learned_space_time':
        rows.append(Pair(f'{theirs}embeddings.time_embeddings', f'{ours}/posembed_input/time_embedding'))
    for layer in range(num_layers):
        rows += _block(vivit, f'{theirs}encoder.layer.{layer}', f'{ours}/encoderblock_{layer}')
    if vivit.final_norm:
        rows += _norm(f'{theirs}layernorm', f'{ours}/encoder_norm')
    return rows


def _block(vivit: ViViT, theirs: str, ours: str) -> list[Pair]:
    pattern = pattern_of(vivit.attention, vivit.attention_order)
    several = len(pattern.attends) > 1
    rows = []
    for over in pattern.attends if several else ('',):
        rows += _norm(f'{theirs}.layernorm_{over or "before"}', f'{ours}/LayerNorm_{over or 0}')
        rows += _attention(
            f'{theirs}.attention' + (f'_{over}' if several else ''),
            f'{ours}/MultiHeadDotProductAttention_{over or 0}',
            vivit.num_heads,
        )
        if over in pattern.projected:
            rows += _dense(f'{theirs}.projection_{over}', f'{ours}/projection_{over}')
    mlp = f'{ours}/MlpBlock' + ('' if several else '_0')
    return [
        *rows,
        *_norm(f'{theirs}.layernorm_after', f'{ours}/LayerNorm_{"mlp" if several else 1}'),
        *_dense(f'{theirs}.intermediate.dense', f'{mlp}/Dense_0'),
        *_dense(f'{theirs}.output.dense', f'{mlp}/Dense_1'),
    ]


def _attention(theirs: str, ours: str, heads: int) -> list[Pair]:
    rows = []
    for part in ('query', 'key', 'value'):
        rows += [
            Pair(f'{theirs}.attention.{part}.weight', f'{ours}/{part}/kernel', 'd h c -> (h c) d', heads),
            Pair(f'{theirs}.attention.{part}.bias', f'{ours}/{part}/bias', 'h c -> (h c)', heads),
        ]
    return [
        *rows,
        Pair(f'{theirs}.output.dense.weight', f'{ours}/out/kernel', 'h c d -> d (h c)', heads),
        Pair(f'{theirs}.output.dense.bias', f'{ours}/out/bias'),
    ]


def _norm(theirs: str, ours: str) -> list[Pair]:
    return [Pair(f'{theirs}.weight', f'{ours}/scale'), Pair(f'{theirs}.bias', f'{ours}/bias')]


def _dense(theirs: str, ours: str) -> list[Pair]:
    return [Pair(f'{theirs}.weight', f'{ours}/kernel', 'i o -> o i'), Pair(f'{theirs}.bias', f'{ours}/bias')]
