"""A run that is killed at moments which a seed decides, and started again each time."""

import dataclasses
import json
import pathlib
import random
import signal
import subprocess
import time
from collections.abc import Callable, Mapping

from ordeals import started
from ordeals.started import RunFailed, Started

# What is aimed at, in these shares: most harm can be done while a checkpoint is written.
SHARES = {
    'saving': 6,
    'training': 4,
    'validating': 2,
    'starting': 2,
    'compiling': 2,
    'testing': 2,
    'reporting': 2,
}
NEEDS_STEPS = ('saving', 'training', 'validating')
WITHOUT_STEPS = ('testing', 'reporting')  # when there is nothing more to train
POLL = 0.002  # seconds
LATEST = 600.0  # seconds until a run that is not where it should be is taken to hang
GENTLE = (signal.SIGTERM, signal.SIGINT)


@dataclasses.dataclass(frozen=True)
class Kill:
    """A kill and what was found after it.

    Attributes:
        aimed: The phase that was aimed at.
        phase: The one that the run was in.
        by: Name of the signal.
        step: The last that the run had told of.
        whole: Steps whose checkpoints are whole.
        unfinished: Checkpoints that were being written.
        damaged: The step whose checkpoint got a bit turned afterwards; None: none.
        lost: Steps made in vain, as far as the run had told of them.
        seconds: From the start of the run to its end.
        dying: Seconds of these from the signal on.
    """

    aimed: str
    phase: str
    by: str
    step: int
    whole: tuple[int, ...]
    unfinished: int
    damaged: int | None
    lost: int
    seconds: float
    dying: float


class Killing:
    """An undisturbed run, and one that is killed.

    Args:
        config: File of the configuration.
        overrides: New values by key.
        folder: For both workdirs (`whole` and `killed`) and what the runs print.
        seed: Decides phases, moments and what is damaged.

    Attributes:
        starts: How often the killed run was started.
        total: Steps of the run.
    """

    def __init__(self, config: str, overrides: Mapping[str, str], folder: pathlib.Path, seed: int):
        self.folder, self.starts, self.total = folder, 0, 0
        self._config, self._overrides = config, overrides
        self._random = random.Random(seed)
        self._damaged: set[int] = set()  # steps that nothing has found out about yet
        self._shortest: dict[str, float] = {}  # seconds of each phase
        self._validate_every = 0

    def undisturbed(self) -> float:
        """Makes the run that the other one is held to; returns its seconds."""
        workdir = self.folder / 'whole'
        arguments = started.command(self._config, workdir, self._overrides)
        with Started(arguments, workdir, self.folder / 'whole.txt') as run:
            self._to_the_end(run)
            self.total = run.total
            seconds = time.monotonic() - run.began
        config = json.loads((workdir / 'config.json').read_text(encoding='utf-8'))
        every = config['evaluation']['every_steps']
        # That a validation begins is told where the step before it is logged.
        self._validate_every = every if every and every % config['training']['log_every'] == 0 else 0
        return seconds

    def aims(self, kills: int) -> list[str]:
        """Returns the phases to kill in; those after the training at the end."""
        names = [name for name, share in SHARES.items() for _ in range(share)]
        drawn = [names[place * 7 % len(names)] for place in range(kills)]  # spread however few there are
        self._random.shuffle(drawn)
        return sorted(drawn, key=lambda name: name in WITHOUT_STEPS)

    def kill(self, aimed: str, *, stepping: int, gentle: float = 0.0, damage: bool = False) -> Kill | None:
        """Starts the run and kills it.

        Args:
            aimed: In this phase.
            stepping: Kills from this one on that need steps to be left.
            gentle: Probability of SIGTERM or SIGINT instead of SIGKILL.
            damage: Turn a bit of the newest checkpoint afterwards, if there is another one.

        Returns:
            What was found; None if the run was done before it could be killed.
        """
        saved = max(started.look(self.folder / 'killed').whole, default=0)
        # Steps are shared out among the kills that need some; a part is left for whoever comes late.
        share = (self.total - saved) / (stepping + 1)
        step = saved + int(self._random.random() * share) if aimed in NEEDS_STEPS else 0
        moment = self._random.random() * self._shortest.get(aimed, 0.0)
        by = self._random.choice(GENTLE) if self._random.random() < gentle else signal.SIGKILL
        with self._start() as run:
            # On a busy machine a phase may pass unseen: then it is killed where it is, before steps run out.
            if not _follow(
                run,
                lambda phase: (
                    run.step >= step
                    and (phase == aimed or (aimed in NEEDS_STEPS and run.step >= step + share))
                ),
            ):
                self._check_end(run)
                return None
            until = time.monotonic() + moment
            _follow(run, lambda phase: phase != aimed or time.monotonic() > until)
            if run.process.poll() is not None:
                self._check_end(run)
                return None
            phase, began = run.freeze(), time.monotonic()
            run.process.send_signal(by)
            run.process.send_signal(signal.SIGCONT)
            self._check_death(run, by, phase)
            ended = time.monotonic()
            self._check_beginning(run)
            self._learn(run)
            found = started.look(run.workdir)
            damaged = self._damage(found.whole) if damage else None
            return Kill(
                aimed=aimed,
                phase=phase,
                by=by.name,
                step=run.step,
                whole=found.whole,
                unfinished=len(found.unfinished),
                damaged=damaged,
                lost=max(run.step - (self._newest() or 0), 0),
                seconds=ended - run.began,
                dying=ended - began,
            )

    def last(self) -> float:
        """Starts the run once more and leaves it alone; returns its seconds."""
        with self._start() as run:
            self._to_the_end(run)
            return time.monotonic() - run.began

    def _start(self) -> Started:
        workdir = self.folder / 'killed'
        self.starts += 1
        self._expected = self._newest()
        arguments = started.command(self._config, workdir, self._overrides)
        return Started(arguments, workdir, self.folder / f'killed-{self.starts:03}.txt', self._validate_every)

    def _newest(self) -> int | None:
        """Returns the step that the next start must go on from."""
        whole = started.look(self.folder / 'killed').whole
        return max((step for step in whole if step not in self._damaged), default=None)

    def _to_the_end(self, run: Started) -> None:
        _follow(run, lambda phase: False)
        self._check_end(run)

    def _learn(self, run: Started) -> None:
        """Notes how short phases are, so that moments are drawn within them: programs come from a cache later."""
        for phase, seconds in run.lasted.items():
            self._shortest[phase] = min(*seconds, self._shortest.get(phase, LATEST))

    def _check_end(self, run: Started) -> None:
        if run.process.returncode != 0:
            raise RunFailed(f'exit code {run.process.returncode} of a run that nobody disturbed: {run.log}')
        if run.workdir.name == 'killed':
            self._check_beginning(run)
        self._learn(run)
        _check_left(run)

    def _check_beginning(self, run: Started) -> None:
        """Checks where the run went on, if it came to say so."""
        if run.phase() == 'starting':
            return
        if run.goes_on_from != self._expected:
            raise RunFailed(
                f'went on from step {run.goes_on_from}, though {self._expected} was the newest whole checkpoint: '
                f'{run.log}'
            )
        if ('is damaged' in run.printed()) != bool(self._damaged):
            raise RunFailed(
                f'damaged are {sorted(self._damaged) or "none"} of the checkpoints, but see {run.log}'
            )
        self._damaged.clear()

    def _check_death(self, run: Started, by: signal.Signals, phase: str) -> None:
        """Checks how the run ended, and that nothing of it is left."""
        try:
            code = run.process.wait(LATEST)
        except subprocess.TimeoutExpired:
            raise RunFailed(f'{by.name} while {phase} did not end the run: {run.log}') from None
        # A run that was about to end may still do so; one that does not listen yet dies of the signal itself.
        allowed = (-by,) if by == signal.SIGKILL else (0, -by, 128 + by)
        if code not in allowed:
            raise RunFailed(f'exit code {code} after {by.name} while {phase}: {run.log}')
        _check_left(run)

    def _damage(self, whole: tuple[int, ...]) -> int | None:
        """Turns a bit of the newest checkpoint's arrays."""
        good = [step for step in whole if step not in self._damaged]
        if len(good) < 2:
            return None
        folder = self.folder / 'killed' / 'checkpoints' / str(good[-1]) / 'params'
        path = self._random.choice(sorted(path for path in folder.rglob('*') if path.is_file()))
        content = bytearray(path.read_bytes())
        content[self._random.randrange(len(content))] ^= 1 << self._random.randrange(8)
        path.write_bytes(content)
        self._damaged.add(good[-1])
        return good[-1]


def _follow(run: Started, reached: Callable[[str], bool]) -> bool:
    """Waits until a run has reached something; returns False if it ended before that.

    Raises:
        RunFailed: If it takes too long.
    """
    while not reached(run.phase()):
        if run.process.poll() is not None:
            run.phase()  # takes what was said at last
            return False
        if time.monotonic() - run.began > LATEST:
            raise RunFailed(f'still {run.phase()} after {LATEST:.0f} s: {run.log}')
        time.sleep(POLL)
    return True


def _check_left(run: Started) -> None:
    if left := run.left_behind():
        raise RunFailed(f'left processes behind: {left}; {run.log}')
