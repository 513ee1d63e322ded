"""The end of a run: its report, and what to do next."""

import shlex
from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from vivit_jax import inference, paths, report
from vivit_jax.data.record import Source
from vivit_jax.inference import Predictor
from vivit_jax.telling.terminal import Terminal


def write_report(
    folder: paths.Path,
    terminal: Terminal,
    *,
    predictor: Predictor | None = None,
    sources: Mapping[str, Source] | None = None,
) -> None:
    """Writes the report of a run and says where it is, or in one line why not: the run is done all the same.

    Args:
        folder: The workdir.
        terminal: Where the run speaks.
        predictor: Its model; else it is read.
        sources: Its splits; else they are opened.
    """
    if jax.process_index() != 0:
        return
    try:
        with terminal.phase('writing the report'):
            path = report.write(folder, predictor=predictor, sources=sources)
    except Exception as error:
        words = ' '.join(f'{type(error).__name__}: {error}'.split())[:300]
        terminal.say(
            f'warning: the report was not written ({words}); '
            f'python -m vivit_jax.report {shlex.quote(str(folder))} tries again'
        )
        return
    terminal.say(f'report: {path}', style='bold')


def report_evaluation(
    folder: paths.Path,
    terminal: Terminal,
    *,
    config: ConfigDict,
    sources: Mapping[str, Source],
    params: Any,
    mesh: Mesh,
    step: int,
) -> None:
    """Writes the report anew after an evaluation, see `evaluate.evaluate`."""
    source = next(iter(sources.values()))
    predictor = inference.of_run(config, source, params, mesh, folder, step)
    write_report(folder, terminal, predictor=predictor, sources=sources)


def say_next(folder: paths.Path, terminal: Terminal, split: str, count: int) -> None:
    """Says what can be done with a trained model and the `count` examples of a split, in commands that work so."""
    some = f'{split}:0-{min(count, 5) - 1}' if count > 1 else f'{split}:0'
    checkpoint = shlex.quote(f'--checkpoint={folder}')
    terminal.say(f'next: python -m vivit_jax.predict {some} {checkpoint}', is_command=True)
    terminal.say(f'      python tools/attention.py {some} {checkpoint}', is_command=True)
    terminal.say(
        '      the same command with --mode=eval evaluates again, with other views where told', indent=6
    )
