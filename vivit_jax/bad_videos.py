"""Watching over the examples of a run that cannot be read: naming, counting, stopping when they are many."""

import pathlib
from collections.abc import Mapping

import jax
from ml_collections import ConfigDict

from vivit_jax import experiment
from vivit_jax.data.bad_files import BadFiles
from vivit_jax.data.record import Source
from vivit_jax.writers import Terminal

AT_THE_START = 'at the start'


class BadVideos:
    """The bad examples of a run.

    Attributes:
        files: The list in the workdir, which readers add to: `bad_files.csv`, one a process where there are several.
        count: Examples in it.
    """

    def __init__(
        self,
        config: ConfigDict,
        folder: pathlib.Path,
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
        self.files = BadFiles(folder / (f'bad_files_{process}.csv' if process else 'bad_files.csv'))
        self._config, self._sources, self._terminal = config, sources, terminal
        if anew:
            self.files.path.unlink(missing_ok=True)
        if process == 0:
            for split, source in sources.items():
                for name, cause in source.bad:
                    self.files.add(split, name, cause, AT_THE_START)
        self._known = self.files.read()
        self._size = self.files.size()

    @property
    def count(self) -> int:
        """Returns the number of bad examples known so far."""
        return len(self._known)

    def look(self) -> None:
        """Tells of what went bad since the last look; costs one `stat` where nothing did.

        Raises:
            ValueError: If a run must not go on with the others, as `experiment.judge_bad` decides.
        """
        if self.files.size() == self._size:
            return
        self._size = self.files.size()
        known = self.files.read()
        new = [key for key in known if key not in self._known]
        self._known = known
        for split in dict.fromkeys(split for split, _ in new):
            source = self._sources[split]
            bad = [(name, cause) for (of, name), (cause, _) in known.items() if of == split]
            total = len(source) + len(source.bad)
            # The latest first: they are what the message is about.
            experiment.judge_bad(self._config, f'the split {split!r}', bad[::-1], total)
            names = [f'{name} ({known[of, name][0]})' for of, name in new if of == split]
            told = ', '.join(names[:3]) + (', …' if len(names) > 3 else '')
            self._terminal.say(
                f'gone bad since the start: {told}; {len(bad)} of {total} examples of {split!r} are bad, see '
                f'{self.files.path}'
            )
