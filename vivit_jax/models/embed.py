"""From pixels to tokens: tubelets or sampled frames (paper, section 3.2), and where the tokens stand."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Array, Float

KERNEL_INITS = ('central_frame', 'average', 'random')
POSITION_EMBEDDINGS = (
    'learned',
    'learned_space_time',
    'sinusoidal_1d',
    'sinusoidal_2d',
    'sinusoidal_3d',
    'none',
)
REMAINDERS = ('error', 'crop')


class TokenEmbedding(nn.Module):
    """Cuts a video into tubelets and projects each linearly to a token.

    Equal to a convolution whose stride is its kernel; written as one matrix product, which is what it is.

    Attributes:
        width: Size d of a token.
        tubelet: `(t, h, w)` of a tubelet in frames and pixels. Uniform frame sampling takes `(1, h, w)`.
        sampling: Whether the video is sampled by frames: the kernel is then 2-D, `[h w c d]`, as in an image
            ViT, instead of `[t h w c d]`.
        sampled_frames: Frames to keep, evenly spaced, when sampling; 0 keeps all.
        kernel_init: How a fresh 3-D kernel starts, one of `KERNEL_INITS` (section 3.4).
        remainder: What to do where tubelets do not divide the clip: 'error', or 'crop' what is left over at
            the end of each axis (a VALID convolution).
        dtype: Compute dtype.
    """

    width: int
    tubelet: tuple[int, int, int]
    sampling: bool
    sampled_frames: int
    kernel_init: str
    remainder: str
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, video: Float[Array, 'b t h w c']) -> Float[Array, 'b nt nh nw d']:
        """Returns the token grid.

        Raises:
            ValueError: If the clip is smaller than a tubelet, if fewer frames are there than are to be
                sampled, or if the tubelet does not divide the clip and `remainder` is 'error'.
        """
        if self.sampling and self.sampled_frames:
            video = video[:, sample_frames(video.shape[1], self.sampled_frames)]
        grid = token_grid(video.shape[1:4], self.tubelet, self.remainder)
        t, h, w = self.tubelet
        video = video[:, : grid[0] * t, : grid[1] * h, : grid[2] * w]
        patches = rearrange(
            video, 'b (nt t) (nh h) (nw w) c -> b nt nh nw (t h w c)', t=t, h=h, w=w
        )  # fmt: skip
        patch_shape = (h, w, video.shape[-1], self.width)
        if self.sampling:
            kernel = self.param('kernel', nn.initializers.lecun_normal(), patch_shape)
        else:
            kernel = self.param('kernel', tubelet_initialiser(self.kernel_init), (t, *patch_shape))
        bias = self.param('bias', nn.initializers.zeros, (self.width,))
        patches, kernel, bias = nn.dtypes.promote_dtype(patches, kernel, bias, dtype=self.dtype)
        return patches @ kernel.reshape(-1, self.width) + bias


def token_grid(
    clip_size: tuple[int, ...], tubelet: tuple[int, int, int], remainder: str = 'error'
) -> tuple[int, int, int]:
    """Returns `(nt, nh, nw)`, the tubelets of a clip of `clip_size = (t, h, w)` frames and pixels.

    Raises:
        ValueError: If a tubelet is larger than the clip, or does not divide it and `remainder` is 'error'.
    """
    size = tuple(clip_size)
    grid = tuple(clip // tube for clip, tube in zip(size, tubelet, strict=True))
    left = tuple(clip % tube for clip, tube in zip(size, tubelet, strict=True))
    if 0 in grid:
        raise ValueError(
            f'a tubelet {tubelet} (t, h, w) is larger than the clip {size}: choose a smaller one'
        )
    if any(left) and remainder == 'error':
        raise ValueError(
            f'tubelet {tubelet} (t, h, w) does not divide the clip {size}: {left} left over; '
            "choose sizes that divide, or model.remainder='crop' to leave the rest unused"
        )
    return grid  # type: ignore[return-value]


def sample_frames(num_frames: int, sampled: int) -> np.ndarray:
    """Returns the indices of `sampled` of `num_frames` frames, evenly spaced and away from both ends.

    Frame i is the one nearest to (i + 1) * num_frames / (sampled + 1); all frames when sampled = num_frames.

    Raises:
        ValueError: If more frames are asked for than there are.
    """
    if not 1 <= sampled <= num_frames:
        raise ValueError(f'model.sampled_frames={sampled}: must be 1 to {num_frames}, the frames of the clip')
    if sampled == num_frames:
        return np.arange(num_frames)
    return np.round(np.arange(1, sampled + 1) * num_frames / (sampled + 1)).astype(int)


def tubelet_initialiser(method: str) -> nn.initializers.Initializer:
    """Starts a tubelet kernel `[t h w c d]` as an image model's patch kernel would start (section 3.4).

    Args:
        method: 'central_frame' puts a fresh 2-D kernel at the time index t // 2 and zeros elsewhere
            (the paper's "central frame initialisation"), 'average' puts it at every time index divided by t
            ("filter inflation"), 'random' draws all of them independently.
    """

    def initialise(rng: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype = jnp.float32) -> jax.Array:
        if method == 'random':
            return nn.initializers.lecun_normal()(rng, shape, dtype)
        time = shape[0]
        patch = nn.initializers.lecun_normal()(rng, shape[1:], dtype)
        if method == 'central_frame':
            return jnp.zeros(shape, dtype).at[time // 2].set(patch)
        return jnp.broadcast_to(patch / time, shape)

    return initialise


class PositionEmbedding(nn.Module):
    """Adds to every token what tells its place.

    Attributes:
        kind: 'learned' (a parameter `pos_embedding` `[1 n d]`, cls tokens included), 'learned_space_time'
            (TimeSformer's: `pos_embedding` `[1 num_cls+nh*nw d]`, cls tokens included, plus `time_embedding`
            `[1 nt d]`, which starts at zero and which cls tokens do not get; in a factorised encoder, whose
            parts see space or time, one of the two has a single row: take 'learned' there), 'sinusoidal_1d'
            (of the flat index), 'sinusoidal_2d' (of row and column, the same at every time), 'sinusoidal_3d' (of
            time, row and column), or 'none'.
        grid: `(nt, nh, nw)` of the tokens.
        num_cls: Leading tokens without a place of their own: they get zeros from the sinusoidal kinds.
    """

    kind: str
    grid: tuple[int, int, int]
    num_cls: int

    @nn.compact
    def __call__(self, x: Float[Array, 'b n d']) -> Float[Array, 'b n d']:
        """Returns `x` with the positions added, in the dtype of `x`."""
        if self.kind == 'none':
            return x
        if self.kind == 'learned':
            shape = (1, *x.shape[1:])
            positions = self.param('pos_embedding', nn.initializers.normal(stddev=0.02), shape)
        elif self.kind == 'learned_space_time':
            positions = self._space_time(x.shape[-1])
        else:
            table = SINUSOIDS[self.kind](self.grid, x.shape[-1])
            positions = jnp.pad(table, ((self.num_cls, 0), (0, 0)))
        return x + positions.astype(x.dtype)

    def _space_time(self, width: int) -> Float[Array, '1 n d']:
        nt, nh, nw = self.grid
        shape = (1, self.num_cls + nh * nw, width)
        space = self.param('pos_embedding', nn.initializers.normal(stddev=0.02), shape)
        time = self.param('time_embedding', nn.initializers.zeros, (1, nt, width))
        both = space[:, None, self.num_cls :] + time[:, :, None]
        return jnp.concatenate([space[:, : self.num_cls], rearrange(both, '1 t s d -> 1 (t s) d')], axis=1)


def sinusoidal_1d(grid: tuple[int, int, int], width: int) -> Float[np.ndarray, 'n d']:
    """Returns sines then cosines of the flat token index (Vaswani et al. 2017, section 3.5)."""
    return _sinusoid(np.arange(math.prod(grid)), width)


def sinusoidal_2d(grid: tuple[int, int, int], width: int) -> Float[np.ndarray, 'n d']:
    """Returns sines and cosines of the column, then of the row, a quarter of the width each; the same at every time.

    The table of MoCo v3 (Chen et al. 2021) as big_vision computes it: frequencies fall from 1 to 1 / 10000, both
    included.

    Raises:
        ValueError: If the width is no multiple of 4.
    """
    if width % 4:
        raise ValueError(
            f"model.width={width}: must be a multiple of 4 for position_embedding='sinusoidal_2d'"
        )
    time, high, wide = grid
    quarter = width // 4
    frequency = 10_000.0 ** (-np.arange(quarter) / max(quarter - 1, 1))
    row, column = (place.reshape(-1, 1) * frequency for place in np.mgrid[:high, :wide])
    frame = np.concatenate([np.sin(column), np.cos(column), np.sin(row), np.cos(row)], axis=-1)
    return np.tile(frame.astype(np.float32), (time, 1))


def sinusoidal_3d(grid: tuple[int, int, int], width: int) -> Float[np.ndarray, 'n d']:
    """Returns sinusoids of time, row and column side by side, a third of the width each."""
    per_axis = 2 * math.ceil(width / 6)
    places = np.meshgrid(*(np.arange(size) for size in grid), indexing='ij')
    encoded = [_sinusoid(place.ravel(), per_axis) for place in places]
    return np.concatenate(encoded, axis=-1)[:, :width]


def _sinusoid(place: np.ndarray, width: int) -> np.ndarray:
    half = math.ceil(width / 2)
    frequency = 10_000.0 ** (-np.arange(half) / half)
    angle = place[:, None] * frequency
    return np.concatenate([np.sin(angle), np.cos(angle)], axis=-1)[:, :width].astype(np.float32)


SINUSOIDS = {
    'sinusoidal_1d': sinusoidal_1d,
    'sinusoidal_2d': sinusoidal_2d,
    'sinusoidal_3d': sinusoidal_3d,
}
