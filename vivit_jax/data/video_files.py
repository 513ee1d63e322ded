"""Video files, read frame by exact frame; `listing` tells how folders and tables list them."""

from vivit_jax.data.files.decoding import frame_times, probe, read_frames
from vivit_jax.data.listed import Kind

KIND = Kind(
    name='videos',
    endings=(
        *('.3gp', '.avi', '.flv', '.m2ts', '.m4v', '.mkv', '.mov', '.mp4', '.mpeg', '.mpg', '.mts'),
        *('.ogv', '.ts', '.webm', '.wmv'),
    ),
    probe=probe,
    read=read_frames,
    times=frame_times,
)
