"""Starting a ViViT from trained weights: of an image ViT (paper, section 3.4), or of another video model."""

import dataclasses
import fnmatch
import math
import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vivit_jax.fitting import check_sizes, kernel_shape, pattern_by_name
from vivit_jax.formats.account import Account, Change, Unused, left_out, told
from vivit_jax.formats.weights import Weights, flat, nested
from vivit_jax.inflation import inflate, resize
from vivit_jax.models import embed

KERNELS = ('central_frame', 'average', 'rank_pooling', 'fresh')
TEMPORAL_ATTENTIONS = ('zero_output', 'zero', 'copy', 'fresh')

POSITIONS = 'posembed_input/pos_embedding'
TIMES = 'posembed_input/time_embedding'
HEAD = ('output_projection', 'pre_logits')
# What belongs to one attention of a block, and which: of blocks with several they are named by what they look over.
BLOCK_PART = re.compile(r'/(LayerNorm|MultiHeadDotProductAttention|projection)_([a-z]+)/')
Grid = tuple[int, int, int]


NEVER_LEARNS = (
    "temporal_attention='zero': no kernel of the temporal attention will ever receive a gradient, since each one's "
    "is a product with another that is zero; 'zero_output' starts equally and learns"
)


def initialise(
    params: Mapping[str, Any],
    weights: Weights,
    *,
    grid: Grid | None = None,
    kernel: str = 'central_frame',
    temporal_attention: str = 'zero_output',
    fresh: Sequence[str] = (),
) -> tuple[dict[str, Any], Account]:
    """Puts trained weights into a model's parameters.

    An image ViT goes into any model: its encoder becomes the spatial one, its positions are resized to the grid and
    repeated over time (a table of times beside them starts fresh, at zero), its patch kernel is inflated. Where a
    block has several attentions, the image's becomes the one over space, or else the last (of 'axial' the one over
    width, of 'local_global' the grid's, which sees all of a still clip, coarsely); `temporal_attention` tells what
    the others start from.

    A video model goes into the same model with other frames, resolution or classes; positions are interpolated
    along each axis, and tables of places and times summed up where the model has one table for both.

    Args:
        params: Fresh parameters of the model, nested; not changed.
        weights: From `formats.load`.
        grid: `(nt, nh, nw)` of the model's tokens; None where the parameters tell it: always for square frames of
            a factorised encoder, elsewhere when the frames' grid is the file's.
        kernel: A tubelet kernel `[t h w c d]` from a patch kernel: 'central_frame' (at the time index t // 2, zeros
            elsewhere; equation 9), 'average' (at every index, divided by t: filter inflation, equation 8),
            'rank_pooling' (weighted by approximate rank pooling, Bilen et al. 2016, divided by t), or 'fresh'.
        temporal_attention: Of blocks with several attentions, from an image ViT, all but the one that is the image's:
            'zero_output' (zero output projection: at the start the block does without it, and it learns), 'zero'
            (all of it zero, as ViViT's paper puts it: no kernel of it ever receives a gradient), 'copy' (of the
            image's attention, with its LayerNorm), or 'fresh'. In 'divided' the projection after the temporal
            attention is the output that 'zero_output' and 'copy' set to zero: with 'copy' it starts as TimeSformer
            does; with 'fresh' it is zero as in any new model.
        fresh: Patterns of parameters to leave as they are, as `('output_projection/*',)`.

    Returns:
        The parameters, nested NumPy arrays, and what happened to each array.

    Raises:
        ValueError: If sizes of the file and the model differ (with both), if an option is unknown, or if the weights
            are of a model that does not fit; one line.
    """
    _check_choice('kernel', kernel, KERNELS)
    _check_choice('temporal_attention', temporal_attention, TEMPORAL_ATTENTIONS)
    target = {name: np.asarray(array) for name, array in flat(params).items()}
    source = flat(weights.params)
    for pattern in fresh:
        if not fnmatch.filter(target, pattern):
            raise ValueError(
                f'fresh={pattern!r} matches no parameter; names are as {", ".join(_some_names(target))}'
            )
    check_sizes(target, source, weights)
    start = _Start(target, source, weights, grid, kernel, temporal_attention, tuple(fresh))
    filled, account = start.run()
    if temporal_attention == 'zero' and start.new_attentions:
        warnings.warn(NEVER_LEARNS, stacklevel=2)
        account = dataclasses.replace(account, notes=(*account.notes, NEVER_LEARNS))
    return filled, account


def _check_choice(option: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f'{option}={value!r}: choose one of {", ".join(choices)}')


def _some_names(names: Mapping[str, Any]) -> list[str]:
    return [name for name in names if re.search(r'kernel|pos_emb', name)][:3]


class _Start:
    """One initialisation under way: goes through the model's parameters and finds for each what it is made of."""

    def __init__(
        self,
        target: dict[str, np.ndarray],
        source: dict[str, np.ndarray],
        weights: Weights,
        grid: Grid | None,
        kernel: str,
        temporal_attention: str,
        fresh: tuple[str, ...],
    ):
        self.target, self.source, self.weights = target, source, weights
        self.kernel, self.temporal_attention, self.fresh = kernel, temporal_attention, fresh
        (self.kind, pattern), (self.from_kind, _) = pattern_by_name(target), pattern_by_name(source)
        # An image's attention is the one over space, or else the last of a block.
        space = 'space' if 'space' in pattern.attends else pattern.attends[-1]
        self.projected = pattern.projected
        self.grid = grid or self._grid()
        self.is_image = weights.is_image and not self._is_the_same_video_model()
        self.from_grid = weights.grid if self.is_image == weights.is_image else self.grid
        self.new_attentions = set(pattern.attends) - {space} if self.is_image else set()
        self.params: dict[str, np.ndarray] = {}
        self.changes: dict[str, Change] = {}
        self.used: set[str] = set()
        self.reasons: dict[str, str] = {}

    def _is_the_same_video_model(self) -> bool:
        """Whether what looks like an image ViT of Scenic's has a position for every token of this model's frames.

        Its files do not tell frames that were sampled from the rows of a larger image.
        """
        sampled = self.target['embedding/kernel'].ndim == 4 and self.grid is not None and self.grid[0] > 1
        name = f'Transformer/{POSITIONS}'
        same = [tree[name].shape[1] - ('cls' in tree) for tree in (self.target, self.source) if name in tree]
        return self.weights.kind == 'scenic' and sampled and len(same) == 2 and same[0] == same[1]

    def run(self) -> tuple[dict[str, Any], Account]:
        """Does it."""
        for name in self.target:
            self._one(name)
        unused = left_out(self.weights)
        for name in self.source:
            if name not in self.used:
                reason = self.reasons.get(name) or self._why_unused(name)
                for array, shape in self.weights.origin[name].arrays.items():
                    unused.setdefault(array, Unused(shape, reason))
        # An array of which a part is used (a fused projection) is not unused.
        for name in self.used:
            for array in self.weights.origin[name].arrays:
                unused.pop(array, None)
        account = Account(self.weights.path, self.weights.kind, self.changes, unused, self.weights.notes)
        return nested(self.params), account

    def _one(self, name: str) -> None:
        """Fills one parameter."""
        if any(fnmatch.fnmatch(name, pattern) for pattern in self.fresh):
            self._keep(name, 'as asked', self._source_of(name), 'kept fresh as asked')
        elif name.startswith('embedding/'):
            self._embedding(name)
        elif name.endswith(POSITIONS):
            self._positions(name)
        elif name.endswith(TIMES):
            self._times(name)
        elif name.split('/')[0] in HEAD:
            self._head(name)
        elif (part := BLOCK_PART.search(name)) and part[2] in self.new_attentions:
            self._new_attention(name, part[1], part[2])
        elif (origin := self._source_of(name)) in self.source:
            self._put(name, self.source[origin], 'copied', origin)
        else:
            self._keep(name, self._why_fresh(name))

    def _put(
        self, name: str, value: np.ndarray, action: str, origin: str, note: str = '', more: Sequence[str] = ()
    ) -> None:
        self.params[name] = np.ascontiguousarray(value, self.target[name].dtype)
        source = self.weights.origin[origin]
        arrays = dict(source.arrays)
        for other in more:
            arrays |= self.weights.origin[other].arrays
        self.changes[name] = Change(action, self.target[name].shape, arrays, told(source, note))
        self.used |= {origin, *more}

    def _keep(self, name: str, note: str, origin: str = '', reason: str = '') -> None:
        """Leaves a parameter as it is, and says why; also why what it could have been made of is not used."""
        self.params[name] = self.target[name]
        self.changes[name] = Change('fresh', self.target[name].shape, {}, note)
        if origin in self.source:
            self.reasons[origin] = reason

    def _source_of(self, name: str) -> str:
        """Returns what the same thing is called in the file's model."""
        if self.from_kind == self.kind:
            return name
        if name == 'cls_SpatialTransformer':
            return 'cls'
        name = re.sub(r'^SpatialTransformer/', 'Transformer/', name)
        if '/MlpBlock/' in name or '/LayerNorm_mlp/' in name:
            return name.replace('/MlpBlock/', '/MlpBlock_0/').replace('/LayerNorm_mlp/', '/LayerNorm_1/')
        return BLOCK_PART.sub(r'/\1_0/', name)

    def _embedding(self, name: str) -> None:
        kernel, value = self.target['embedding/kernel'], self.source[name]
        if value.ndim == 4:
            value = value[None]
        time, from_time = kernel_shape(kernel)[0], kernel_shape(self.source['embedding/kernel'])[0]
        inflates = time != from_time
        if inflates and self.kernel == 'fresh':
            self._keep(name, "kernel='fresh'", name, 'kept fresh as asked')
            return
        if name == 'embedding/bias':
            self._put(name, value, 'copied', name)
            return
        actions, notes = [], []
        if value.shape[3] != kernel_shape(kernel)[3]:
            value = value.sum(axis=3, keepdims=True)
            actions.append('summed')
            notes.append('over RGB')
        if inflates:
            value = inflate(value[0], time, self.kernel)
            actions.append('inflated')
            notes.append(self.kernel)
        action = ' and '.join(actions) or 'copied'
        self._put(name, value[0] if kernel.ndim == 4 else value, action, name, ', '.join(notes))

    def _head(self, name: str) -> None:
        if name not in self.source:
            self._keep(name, 'the file has none')
        elif name.startswith('output_projection') and self.is_image:
            self._keep(name, "the image model's classes are not the videos'", name, 'of the image classes')
        elif self._head_fits():
            self._put(name, self.source[name], 'copied', name)
        else:
            # Kernel and bias belong together: neither is of use where one does not fit.
            shapes = (self.source[f'{name.split("/")[0]}/kernel'].shape, self._head_shape(name))
            note = f'its kernel is {shapes[0]} in the file and {shapes[1]} here'
            self._keep(name, note, name, note)

    def _head_shape(self, name: str) -> tuple[int, ...]:
        return self.target[f'{name.split("/")[0]}/kernel'].shape

    def _head_fits(self) -> bool:
        """Whether all of the head that the model has is the file's: a part of it is of no use."""
        return all(
            name in self.source and self.source[name].shape == array.shape
            for name, array in self.target.items()
            if name.split('/')[0] in HEAD and not (self.is_image and name.startswith('output'))
        )

    def _new_attention(self, name: str, part: str, over: str) -> None:
        """Fills an attention of a block that an image model has not, as Model 3's over time (section 3.4)."""
        origin, how = self._source_of(name), self.temporal_attention
        last = part == 'projection' or (over not in self.projected and '/out/' in name)
        zero = {
            'zero': part != 'LayerNorm',
            'zero_output': last,
            'copy': part == 'projection',
            'fresh': False,
        }
        if zero[how]:
            self.params[name] = np.zeros_like(self.target[name])
            self.changes[name] = Change('zeroed', self.target[name].shape, {}, f'temporal_attention={how}')
        elif how == 'copy':
            self._put(name, self.source[origin], 'copied', origin)
        else:
            self._keep(name, f'temporal_attention={how}')

    def _positions(self, name: str) -> None:
        encoder = name.removesuffix(f'/{POSITIONS}')
        if encoder == 'TemporalTransformer' and self.from_kind != self.kind:
            self._keep(name, 'an image model has no time')
            return
        assert self.grid is not None
        apart, from_times = f'{encoder}/{TIMES}' in self.target, self._source_of(f'{encoder}/{TIMES}')
        wanted = _part(self.grid, encoder)
        if apart:
            wanted = (1, *wanted[1:])
        origin = self._source_of(name)
        array = self.target[name][0]
        slot = array.shape[0] - math.prod(wanted)
        if slot != int(self._cls_of(name) in self.target):
            raise ValueError(
                f'grid={self.grid}: the model has {array.shape[0]} positions at {name}, not those of {wanted} tokens'
            )
        if origin not in self.source:
            self._computed_positions(name, encoder, wanted, slot)
            return
        values = self.source[origin][0]
        from_slot = int(self._cls_of(origin) in self.source)
        still = self.is_image or from_times in self.source  # the same at every time
        if apart and not still:
            raise ValueError(
                f'{self.weights.path}: has a position for each place and time, which are not the tables of places '
                "and of times that the model has: take model.position_embedding='learned'"
            )
        values, actions = self._fit(values[from_slot:], encoder, wanted, still=still)
        notes, more = [], []
        if not apart and from_times in self.source:
            times = resize(self.source[from_times][0], wanted[:1])
            values = values + np.repeat(times, math.prod(wanted[1:]), axis=0)
            actions.append('summed')
            notes.append('with the times')
            more.append(from_times)
        if slot and from_slot:
            values = np.concatenate([self.source[origin][0, :1], values])
        elif slot:
            values = np.concatenate([array[:1], values])
            notes.append("the cls token's fresh")
        elif from_slot:
            notes.append("without the cls token's")
        action = ' and '.join(actions) or 'copied'
        self._put(name, values[None], action, origin, ', '.join(notes), more)

    def _cls_of(self, name: str) -> str:
        """Returns the cls token of the encoder that positions belong to."""
        encoder = name.split('/')[0]
        return 'cls' if encoder == 'Transformer' else f'cls_{encoder}'

    def _times(self, name: str) -> None:
        """Fills the table of times that stands beside one of places."""
        origin, frames = self._source_of(name), self.target[name].shape[1]
        if origin in self.source:
            values = self.source[origin][0]
            action = 'copied' if len(values) == frames else 'resized'
            self._put(name, resize(values, (frames,))[None], action, origin)
        else:
            image = self.is_image
            self._keep(name, 'an image model has no time' if image else 'the file has no learned positions')

    def _computed_positions(self, name: str, encoder: str, wanted: Grid, slot: int) -> None:
        """Fills learned positions from weights whose positions are a formula."""
        if self.weights.model['position_embedding'] != 'sinusoidal_2d':
            time = encoder == 'TemporalTransformer'
            self._keep(name, self._why_fresh(name) if time else 'the file has no learned positions')
            return
        table = embed.sinusoidal_2d(wanted, self.target[name].shape[-1])
        self.params[name] = np.pad(table, ((slot, 0), (0, 0)))[None].astype(self.target[name].dtype)
        self.changes[name] = Change('computed', self.target[name].shape, {}, 'sinusoidal_2d, as the file')

    def _fit(
        self, values: np.ndarray, encoder: str, wanted: Grid, *, still: bool
    ) -> tuple[np.ndarray, list[str]]:
        """Brings positions `[n d]` to a grid: interpolated over space, over time interpolated or repeated."""
        from_grid = self.from_grid
        if from_grid is None and still and len(values) == wanted[1] * wanted[2]:
            from_grid = (1, *wanted[1:])
        if from_grid is None:
            if len(values) == math.prod(wanted):
                return values, []
            scenic = ', or convert it with its configuration first (tools/convert_scenic.py)'
            raise ValueError(
                f"{self.weights.path}: has positions for {len(values)} tokens, and the model's grid is {wanted}; how "
                f'those of the file lie cannot be told: take frames of as many patches'
                f'{scenic if self.weights.kind == "scenic" else ""}'
            )
        there = _part(from_grid, encoder)
        if still:
            there = (1, *there[1:])
        values = values.reshape(*there, -1)
        actions = []
        size = (1 if still else wanted[0], *wanted[1:])
        if size != there:
            values = resize(values, size)
            actions.append('resized')
        if still and wanted[0] > 1:
            values = np.repeat(values, wanted[0], axis=0)
            actions.append('repeated')
        return values.reshape(math.prod(wanted), -1), actions

    def _grid(self) -> Grid | None:
        """Tells the model's grid from its parameters alone."""
        lengths = {
            name.split('/')[0]: a.shape[1] for name, a in self.target.items() if name.endswith(POSITIONS)
        }
        if not lengths:
            return None
        there = self.weights.grid or (1, 0, 0)
        space = there[1] * there[2]
        times = [array.shape[1] for name, array in self.target.items() if name.endswith(TIMES)]
        if times or self.kind == 'factorised_encoder':
            encoder = 'SpatialTransformer' if self.kind == 'factorised_encoder' else 'Transformer'
            cls = 'cls_SpatialTransformer' if self.kind == 'factorised_encoder' else 'cls'
            tokens = lengths[encoder] - int(cls in self.target)
            time = lengths.get('TemporalTransformer', 1) - int('cls_TemporalTransformer' in self.target)
            time = max(times, default=time)
            side = math.isqrt(tokens)
            if tokens == space:
                return (time, there[1], there[2])
            if side**2 == tokens:
                return (time, side, side)
        else:
            tokens = lengths['Transformer'] - int('cls' in self.target)
            if space and tokens % space == 0:
                return (tokens // space, there[1], there[2])
            if not self.weights.grid:
                return (1, 1, tokens)
        raise ValueError(
            f"grid=None: the model's {tokens} tokens can lie in several grids; tell which, as grid=(nt, nh, nw)"
        )

    def _why_fresh(self, name: str) -> str:
        if name.startswith(('TemporalTransformer/', 'cls_TemporalTransformer')):
            return 'an image model has no time' if self.is_image else 'the file has no temporal encoder'
        if name.startswith('cls'):
            return 'the file has no cls token'
        if '/encoder_norm/' in name:
            return 'the file has no final norm'
        raise ValueError(f'{self.weights.path}: has nothing for the parameter {name}')

    def _why_unused(self, name: str) -> str:
        group = name.split('/')[0]
        if group.startswith('cls'):
            return 'the model has no cls token'
        if name.endswith((POSITIONS, TIMES)):
            return "the model's positions are not learned"
        if group == 'TemporalTransformer':
            return 'the model averages the frames'
        if '/encoder_norm/' in name:
            return 'the model has no final norm'
        if group in HEAD:
            return {'pre_logits': 'the model has no representation layer'}.get(group, 'the model has no head')
        raise ValueError(f'{self.weights.path}: the model has no place for {name}')


def _part(grid: Grid, encoder: str) -> Grid:
    """Returns the part of a grid that an encoder sees at once."""
    nt, nh, nw = grid
    return {'SpatialTransformer': (1, nh, nw), 'TemporalTransformer': (nt, 1, 1)}.get(encoder, grid)
