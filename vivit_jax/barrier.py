"""Where the processes that write a checkpoint wait for one another, and learn that one of them could not.

Orbax lets each process wait, in the background, until all have written their part. One that fails (its disk is full)
does not come, and the others would wait for 20 minutes: here it says so, to all at once.
"""

import collections
import itertools
import time
from typing import Any

import jax
from jax._src import distributed  # its client of the service that knows all processes

_numbers = itertools.count()  # of the saves of this process: the same ones in all
LOOK = 500  # milliseconds from one look at what others say to the next


class Barrier:
    """Waits for all processes at each of the points at which Orbax asks for it while it saves."""

    def __init__(self) -> None:
        self._number, self._written = -1, False
        self._calls: collections.Counter[str] = collections.Counter()

    def begin(self) -> None:
        """Begins another save, in all processes alike."""
        self._number, self._written = next(_numbers), False
        self._calls.clear()
        if jax.process_count() > 1 and jax.process_index() == 0:
            _client().key_value_delete(f'{_folder(self._number - 2)}/')

    def __call__(self, *, key: str, timeout_ms: int) -> None:
        """Waits until all processes are here.

        Args:
            key: The point, the same in all.
            timeout_ms: For how long at most.

        Raises:
            OSError: If a process could not write its part.
            TimeoutError: If one does not come.
        """
        if jax.process_count() == 1:
            return
        client, folder = _client(), _folder(self._number)
        self._calls[key] += 1
        place = f'{folder}/{key}.{self._calls[key]}'
        of_writing = 'async_' in key
        # Orbax passes the other points twice: before a save, and after it, whatever has come of it.
        if not of_writing and self._calls[key] > 1 and not self._written:
            self.fail()
        client.key_value_set(f'{place}/{jax.process_index()}', '')
        until = time.monotonic() + timeout_ms / 1000
        for process in range(jax.process_count()):
            while not _there(client, f'{place}/{process}'):
                if _there(client, f'{folder}/failed', at_once=True):
                    if of_writing:
                        raise OSError('another process could not write its part')
                    return
                if time.monotonic() > until:
                    raise TimeoutError(f'process {process} has not come within {timeout_ms / 1000:.0f} s')
        self._written |= 'commit' in key

    def fail(self) -> None:
        """Tells the others not to wait for this process in this save."""
        if jax.process_count() > 1 and self._number >= 0:
            _client().key_value_set(f'{_folder(self._number)}/failed', '', allow_overwrite=True)


def _client() -> Any:
    return distributed.global_state.client


def _folder(number: int) -> str:
    return f'vivit_jax/saving/{number}'


def _there(client: Any, key: str, *, at_once: bool = False) -> bool:
    """Tells whether a process has left a word; waits for it for a while."""
    try:
        if at_once:
            client.key_value_try_get(key)
        else:
            client.blocking_key_value_get(key, LOOK)
    except jax.errors.JaxRuntimeError as error:
        if 'DEADLINE_EXCEEDED' in str(error) or 'NOT_FOUND' in str(error):
            return False
        raise
    return True
