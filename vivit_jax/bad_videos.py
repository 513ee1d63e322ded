"""Watching over the examples of a run that cannot be read: naming, counting, stopping when they are many."""

import zlib
from collections.abc import Mapping

import jax
import numpy as np
from ml_collections import ConfigDict

from vivit_jax import experiment, paths, sharding
from vivit_jax.data.bad_files import BadFiles
from vivit_jax.data.record import Source
from vivit_jax.mirror import Mirror
from vivit_jax.telling.terminal import Terminal


class BadVideos:
    """The bad examples of a run.

    Attributes:
        files: The list in the workdir, which readers add to: `bad_files.csv`, one a process where there are several.
        count: Examples that are bad, as far as is known.
    """

    def __init__(
        self,
        config: ConfigDict,
        folder: paths.Path,
        sources: Mapping[str, Source],
        terminal: Terminal,
        *,
        anew: bool,
    ):
        """Names what was left out when the sources were opened.

        Args:
            config: Decides how many are too many.
            folder: The workdir, which is there.
            sources: The splits in use.
            terminal: Where is told what goes bad.
            anew: The list of an earlier run in this folder is of no use any more.
        """
        process = jax.process_index()
        name = f'bad_files_{process}.csv' if process else 'bad_files.csv'
        self._mirror = Mirror(folder)  # worker processes and threads add to the file here
        self._path = folder / name
        self.files = BadFiles(self._mirror.here / name)
        self._config, self._sources, self._terminal = config, sources, terminal
        if anew:
            self.files.clear()
            paths.unlink(self._path)
        self._mirror.fetch(name)
        self._left_out = {(split, name) for split, source in sources.items() for name, _ in source.bad}
        if process == 0:
            for split, source in sources.items():
                if source.bad:
                    self.files.add(split, 'at the start', source.bad)
        self._size = self.files.size()
        self._later = dict.fromkeys(sources, 0)
        self._told = set(self.files.read())
        self._mirror.push()
        self._count()

    @property
    def count(self) -> int:
        """Returns the number of bad examples known so far."""
        return sum(experiment.lost(source) for source in self._sources.values()) + sum(self._later.values())

    def look(self, *, together: bool) -> None:
        """Tells of what went bad since the last look.

        One process looks at any time, which costs one `stat`. Several decide as one, so that they look only when
        all of them do.

        Args:
            together: All processes look now.

        Raises:
            ValueError: If a run must not go on with the others, as `experiment.judge_bad` decides; in all
                processes alike.
        """
        several = jax.process_count() > 1
        if (several and not together) or (not several and self.files.size() == self._size):
            return
        self._size = self.files.size()
        self._mirror.push()
        before = dict(self._later)
        self._count()
        known = self.files.read()
        for split, source in self._sources.items():
            if self._later[split] == before[split]:
                continue
            # The latest first: they are what the message is about.
            bad = [(name, cause) for (of, name), (cause, _) in known.items() if of == split][::-1]
            count = experiment.lost(source) + self._later[split]
            total = len(source) + experiment.lost(source)
            experiment.judge_bad(self._config, f'the split {split!r}', bad, count=count, total=total)
            names = [f'{name} ({cause})' for name, cause in bad if (split, name) not in self._told]
            told = ', '.join(names[:3]) + (', …' if len(names) > 3 else '')
            self._terminal.say(
                f'gone bad since the start: {told or "examples of other processes"}; {count} of {total} examples of '
                f'{split!r} are bad, see {self._path}'
            )
        self._told |= set(known)

    def _count(self) -> None:
        """Counts what went bad since the start, each example once however many processes have met it."""
        splits = list(self._sources)
        later = [key for key in self.files.read() if key not in self._left_out and key[0] in splits]
        # Names of any bytes.
        numbers = [(of, zlib.crc32(name.encode('utf-8', 'surrogateescape'))) for of, name in later]
        marks = np.array([(splits.index(of), number) for of, number in numbers], np.uint32)
        everywhere = sharding.gather_rows(marks.reshape(-1, 2))
        places, counts = np.unique(np.unique(everywhere, axis=0)[:, 0], return_counts=True)
        self._later = dict.fromkeys(splits, 0) | {
            splits[place]: int(count) for place, count in zip(places, counts, strict=True)
        }


def check_agreement(sources: Mapping[str, Source]) -> None:
    """Compares the data of all processes, whose batches must come from the same examples.

    Raises:
        ValueError: In all processes, naming the split that differs.
    """
    marks = [[zlib.crc32(source.digest.encode()), len(source)] for source in sources.values()]
    everywhere = sharding.gather_rows(np.array([np.ravel(marks)], np.uint32))
    for place, split in enumerate(sources):
        digests, lengths = everywhere[:, 2 * place], everywhere[:, 2 * place + 1]
        if len(set(digests.tolist())) > 1:
            other = int(np.flatnonzero(digests != digests[0])[0])
            raise ValueError(
                f'the split {split!r} is not the same on all machines: process 0 has {lengths[0]} examples, process '
                f'{other} has {lengths[other]}; files that one of them cannot read, or other lists'
            )
