"""Reading an example to its end, to find damage in its middle."""

import hashlib
import os

import numpy as np

from vivit_jax import paths
from vivit_jax.data.files import stores
from vivit_jax.data.files.decoding import probe
from vivit_jax.data.files.video_container import ERRORS, cause_of, open_video
from vivit_jax.data.record import Record, UnreadableExample

MOST_BYTES = 2**28  # of pixels that are held at once
ENDS = 2**16  # bytes at either end of a file


def video_damage(path: str) -> str:
    """Decodes a video from its start to its end; returns what is damaged, '' where nothing is."""
    found = probe(path)
    if isinstance(found, str):
        return found
    decoded, corrupt, first = 0, 0, -1
    try:
        container, stream = open_video(path)
        with container:
            for frame in container.decode(stream):
                if frame.is_corrupt:
                    corrupt, first = corrupt + 1, decoded if first < 0 else first
                decoded += 1
    except ERRORS as error:
        return f'damaged: {decoded} of {found.num_frames} frames can be decoded, then: {cause_of(error)}'
    # One fewer is no damage: packets that hold no frame of their own are common.
    if decoded < found.num_frames - 1:
        return f'damaged: {decoded} of {found.num_frames} frames can be decoded'
    return f'damaged: {corrupt} of {decoded} frames, the first is frame {first}' if corrupt else ''


def record_damage(record: Record) -> str:
    """Reads all of an example, some frames at a time; returns what is damaged, '' where nothing is."""
    height, width = record.frame_size
    step = max(MOST_BYTES // max(height * width * 4, 1), 1)
    try:
        for start in range(0, record.num_frames, step):
            record.read(np.arange(start, min(start + step, record.num_frames)))
    except UnreadableExample as error:
        return str(error)
    return ''


def fingerprint(path: str) -> str:
    """Returns a text that two files of the same content share: of their sizes, first and last 64 KiB.

    Of a folder it is that of its first and last files, and how many there are.
    """
    digest = hashlib.sha256()
    files = [path]
    if os.path.isdir(path) or (paths.is_remote(path) and paths.path(path).is_dir()):
        names = stores.entries(path) if paths.is_remote(path) else os.scandir(path)
        files = sorted(os.path.join(path, entry.name) for entry in names if entry.is_file())
        digest.update(f'{len(files)} files'.encode())
    for name in dict.fromkeys((*files[:1], *files[-1:])):
        size = stores.size(name)
        digest.update(stores.part(name, 0, ENDS))
        digest.update(f'{size} bytes'.encode())
        digest.update(stores.part(name, max(size - ENDS, 0), ENDS))
    return digest.hexdigest()
