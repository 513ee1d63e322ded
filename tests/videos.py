"""Small videos that tests write, and what plain decoding makes of them."""

import fractions

import av
import numpy as np

FRAMES, HEIGHT, WIDTH = 60, 48, 64
FORMATS = {'transport.mpg': 'mpegts', 'without_times.mp4': 'h264'}  # where the ending tells another


def write_video(
    path,
    codec='libx264',
    options=None,
    times=None,
    frames=FRAMES,
    matrix=None,
    pix_fmt='yuv420p',
    size=(HEIGHT, WIDTH),
):
    """Encodes noise with a bright square that moves over it, so that no two frames are alike.

    times: of each frame, in milliseconds; else evenly spaced. matrix: the nine numbers of the display matrix.
    """
    height, width = size
    noise = np.random.default_rng(0).integers(0, 100, (height, width, 3), np.uint8)
    with av.open(path, 'w', format=FORMATS.get(path.name)) as container:
        stream = container.add_stream(codec, rate=25, options=options or {})
        stream.width, stream.height, stream.pix_fmt = width, height, pix_fmt
        stream.thread_count = 1
        if matrix:
            stream.set_display_matrix(matrix)
        if times:
            stream.codec_context.time_base = fractions.Fraction(1, 1000)
        for i in range(frames):
            pixels = noise.copy()
            pixels[i * 3 % (height - 8) :, i * 5 % (width - 8) :][:8, :8] = 250
            frame = av.VideoFrame.from_ndarray(pixels)
            if times:
                frame.pts, frame.time_base = times[i], fractions.Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def write_sound(path):
    """Writes a tenth of a second of silence, and nothing to see."""
    with av.open(path, 'w') as container:
        stream = container.add_stream('pcm_s16le', rate=8000, layout='mono')
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), 's16', 'mono')
        sound.sample_rate = 8000
        container.mux(stream.encode(sound))


def decode(file):
    """All frames `[t h w 3]` that plain decoding of a file gives, up to an error; not turned upright."""
    frames = []
    with av.open(file) as container:
        container.streams.video[0].thread_count = 1  # several threads guess differently what damage has left
        try:
            for frame in container.decode(video=0):
                frames.append(frame.to_ndarray(format='rgb24'))
        except av.FFmpegError:
            assert frames
    return np.stack(frames)
