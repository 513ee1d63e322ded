"""The views of a video that an evaluation averages over: which frames, which crops."""

import dataclasses

import numpy as np

from vivit_jax.data import clips, transforms
from vivit_jax.data.record import Record

# Nothing is drawn, but transforms are called with a generator.
_NO_RANDOMNESS = np.random.default_rng(0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Views:
    """Turns a record into its views.

    Attributes:
        frames: Frames of a clip.
        stride: Frames of the video from one to the next.
        short: What a video shorter than its clip does, see `clips.clip_views`.
        short_side: Pixels to which the shorter side is resized; 0 leaves it.
        crop: (height, width) of a view in pixels.
        temporal_views: Clips, evenly spaced.
        spatial_views: Crops of each clip, 1 or 3.
        mirrored: Axes of `[t h w c]`, as (0, 1, 2), along which every view is there mirrored as well, in all
            combinations: n axes make 2^n times as many views, those of the last axis outermost.
    """

    frames: int
    stride: int
    short: str
    short_side: int
    crop: tuple[int, int]
    temporal_views: int
    spatial_views: int
    mirrored: tuple[int, ...] = ()

    def __call__(self, record: Record) -> np.ndarray:
        """Returns the clip `[t h w c]`, or all views `[v t h w c]` of several (time outermost).

        Raises:
            UnreadableExample: If the record cannot be read.
        """
        chosen = clips.clip_views(
            record.num_frames,
            frames=self.frames,
            stride=self.stride,
            views=self.temporal_views,
            short=self.short,
        )
        # Views overlap: each frame is read once.
        wanted, places = np.unique(chosen, return_inverse=True)
        frames = record.read(wanted)
        if self.short_side:
            frames = transforms.ResizeShortSide(size=self.short_side, minimum=self.crop)(
                frames, _NO_RANDOMNESS
            )
        crops = transforms.spatial_views(frames, size=self.crop, views=self.spatial_views)
        views = crops[:, places.reshape(chosen.shape)].swapaxes(0, 1)
        video = views.reshape(-1, *views.shape[2:])
        for axis in self.mirrored:
            video = np.concatenate([video, np.flip(video, 1 + axis)])
        return video[0] if len(video) == 1 else video
