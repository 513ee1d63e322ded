"""TensorBoard's event files, written as tensorboardX does, but by the thread that calls, and with room or without.

tensorboardX writes from a thread of its own, which ends where the disk is full; whoever calls it then waits for ever.
"""

import pathlib
import socket
import struct
import sys
import time
from types import ModuleType
from typing import Any

from vivit_jax.telling.growing import Growing


class Events:
    """Writes scalars to a new event file.

    Args:
        folder: Where TensorBoard looks for it.
        purge_step: What other files of the folder tell of this step and later ones is no longer shown.
    """

    def __init__(self, folder: pathlib.Path, purge_step: int):
        self._library = _tensorboard()
        self._file = Growing(folder / f'events.out.tfevents.{int(time.time())}.{socket.gethostname()}')
        events = self._library.proto.event_pb2
        self._add(file_version='brain.Event:2')
        self._add(step=purge_step, session_log=events.SessionLog(status=events.SessionLog.START))

    def add(self, step: int, scalars: dict[str, float]) -> None:
        """Writes scalars of a step, as `{'train/loss': 0.5}`."""
        kinds = self._library.proto.summary_pb2.Summary
        values = [kinds.Value(tag=name, simple_value=float(value)) for name, value in scalars.items()]
        self._add(step=step, summary=kinds(value=values))

    def flush(self) -> None:
        """Tries again what found no room on the disk."""
        self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def _add(self, **fields: Any) -> None:
        """Frames an event as a TFRecord: its length and its bytes, each with a checksum."""
        event = self._library.proto.event_pb2.Event(wall_time=time.time(), **fields).SerializeToString()
        length, masked = struct.pack('<Q', len(event)), self._library.record_writer.masked_crc32c
        sums = [struct.pack('<I', masked(part)) for part in (length, event)]
        self._file.add(length + sums[0] + event + sums[1])


def _tensorboard() -> ModuleType:
    """Imports tensorboardX, which imports PyTorch wherever that is installed, to no use here: it takes seconds."""
    hidden = 'torch' not in sys.modules
    if hidden:
        sys.modules['torch'] = None  # type: ignore[assignment]  # Python's way to say that there is none
    try:
        import tensorboardX
    finally:
        if hidden:
            del sys.modules['torch']
    return tensorboardX
