"""Flips and colours on the device, inside the training step: what `data.transforms` does clip by clip on the host.

The host draws, from each clip's own generator, and the batch brings what was drawn; only the pixels are changed here.
So a run sees the same clips wherever it is done: mirrored exactly, and coloured to one level of 255. That one level
is rounding: both sides compute in float32, but in another order (no detour over HSV, sums of a frame in parts), and
a value that lies halfway between two levels can be rounded to either.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Bool, Float32, Shaped, UInt8

from vivit_jax.data.transforms import UNCHANGED

Plane = Float32[Array, 'b t h w']  # one channel of all clips, in [0, 1]
PerClip = Float32[Array, 'b 1 1 1']


def augment(batch: Mapping[str, jax.Array]) -> Shaped[Array, 'b ... h w c']:
    """Returns the batch's clips after what its entries say, in the order of `transforms.training_transforms`.

    Args:
        batch: `video` and, where something was left to the device, what was drawn for each clip: `flip` bool
            `[b]`, `colour` float32 `[b 4]` as `transforms.ColourJitter.draw` has it, `grey` bool `[b]`. Colours
            need uint8 clips of 3 channels.

    Returns:
        Clips of the same shape and dtype; those of a batch without such entries as they are.
    """
    video = batch['video']
    if 'flip' in batch:
        video = mirror(video, batch['flip'])
    if 'colour' in batch:
        video = change_colours(video, batch['colour'])
    if 'grey' in batch:
        video = drop_colours(video, batch['grey'])
    return video


def mirror(video: Shaped[Array, 'b t h w c'], flip: Bool[Array, ' b']) -> Shaped[Array, 'b t h w c']:
    """Mirrors left and right the clips that `flip` names."""
    return jnp.where(_per_clip(flip, video.ndim), jnp.flip(video, axis=3), video)


def change_colours(
    video: UInt8[Array, 'b t h w 3'], colour: Float32[Array, 'b 4']
) -> UInt8[Array, 'b t h w 3']:
    """Changes brightness, saturation, contrast and hue, in this order, as `transforms.ColourJitter` does.

    Args:
        video: Clips.
        colour: Of each clip: brightness that is added to values in [0, 1]; factor of HSV's saturation; factor of
            the distance to the mean of each frame and channel; turns of HSV's hue.

    Returns:
        The clips; untouched those whose row is `transforms.UNCHANGED`.
    """
    brightness, saturation, contrast, hue = rearrange(colour, 'b four -> four b 1 1 1')
    planes = [jnp.clip(video[..., c] * jnp.float32(1 / 255) + brightness, 0, 1) for c in range(3)]
    planes = _scale_saturation(planes, saturation)
    planes = [jnp.clip(_scale_contrast(plane, contrast), 0, 1) for plane in planes]
    levels = [jnp.round(plane * 255).astype(jnp.uint8) for plane in _turn_hue(planes, hue)]
    untouched = (colour == jnp.array(UNCHANGED, jnp.float32)).all(axis=1)
    return jnp.where(_per_clip(untouched, video.ndim), video, jnp.stack(levels, axis=-1))


def drop_colours(video: UInt8[Array, 'b t h w 3'], grey: Bool[Array, ' b']) -> UInt8[Array, 'b t h w 3']:
    """Turns the clips that `grey` names grey, to the luma of ITU-R 601-2 in OpenCV's fixed-point arithmetic."""
    red, green, blue = (video[..., c].astype(jnp.int32) for c in range(3))
    luma = (9798 * red + 19235 * green + 3735 * blue + 2**14) >> 15
    return jnp.where(_per_clip(grey, video.ndim), luma[..., jnp.newaxis].astype(jnp.uint8), video)


def _per_clip(values: Shaped[Array, ' b'], axes: int) -> Shaped[Array, 'b ...']:
    return values.reshape(-1, *[1] * (axes - 1))


def _scale_saturation(planes: list[Plane], factor: PerClip) -> list[Plane]:
    """Scales HSV's saturation (high - low) / high up to 1; the highest channel, HSV's value, stays."""
    high, low = _extremes(planes)
    # Of a grey pixel all distances are 0, whatever they are scaled by.
    scale = jnp.minimum(factor, high / jnp.where(high > low, high - low, 1))
    return [high - (high - plane) * scale for plane in planes]


def _scale_contrast(plane: Plane, factor: PerClip) -> Plane:
    """Scales the distance to the mean of each frame."""
    return plane * factor + plane.mean(axis=(2, 3), keepdims=True) * (1 - factor)


def _turn_hue(planes: list[Plane], turns: PerClip) -> list[Plane]:
    """Turns HSV's hue; every channel is the highest less a share, 0 to 1, of the distance to the lowest."""
    red, green, blue = planes
    high, low = _extremes(planes)
    spread = jnp.where(high > low, high - low, 1)
    # In sixths of the circle: red at 0, green at 2, blue at 4.
    of_green_or_blue = jnp.where(high == green, 2 + (blue - red) / spread, 4 + (red - green) / spread)
    hue = jnp.where(high == red, (green - blue) / spread, of_green_or_blue) + 6 * turns
    turned = []
    for place in (0, 2, 4):
        away = hue - place
        # 0 to 3: a channel is whole up to 1 and gone from 2 on.
        away = jnp.abs(away - 6 * jnp.round(away / 6))
        turned.append(high - (high - low) * jnp.clip(away - 1, 0, 1))
    return turned


def _extremes(planes: list[Plane]) -> tuple[Plane, Plane]:
    red, green, blue = planes
    return jnp.maximum(jnp.maximum(red, green), blue), jnp.minimum(jnp.minimum(red, green), blue)
