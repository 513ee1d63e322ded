"""Say what is in videos: the most probable classes of each, by a model that was trained or converted.

examples:
  python -m vivit_jax.predict clip.mp4 --checkpoint=runs/my_videos
  python -m vivit_jax.predict VIDEOS/ '*.avi' list.csv --checkpoint=runs/my_videos --output=predictions.csv
  python -m vivit_jax.predict long.mp4 --checkpoint=runs/my_videos --window=10 --every=5 --timeline=long.png
  python -m vivit_jax.predict VIDEOS/ --checkpoint=runs/my_videos --features=features.npz --dtype=bfloat16
  python -m vivit_jax.predict test:3 --checkpoint=runs/my_videos --views=1 --top=3
  python -m vivit_jax.predict clip.mp4 --checkpoint=runs/my_videos --json | jq .top

what a NAME may be:
  a video, or a volume for a model of volumes; a folder of frames; a folder of any of these, however deep; a table
  (CSV, TSV, JSON) with a column `path` and, where wanted, `start,end`; a pattern in quotes; and, where there is no
  such file, SPLIT, SPLIT:INDEX or SPLIT:FIRST-LAST of the data that the model was trained on

A run's folder tells all that is needed: the configuration, the names of the classes, how videos are brought to the
model. Frames, views and averaging are those of --mode=eval. Keys of the configuration are options too:
--config.data.root=ROOT if the run's data has moved, --config.data.threads=2. See docs/predict.md.

exit codes:
  0 done; 1 some of the files could not be read, named on stderr with their causes; 2 none could, or a mistake in the
  command; 130 stopped by Ctrl-C or a terminate signal, 141 by a closed pipe: what was done is written
"""

import argparse
import contextlib
import functools
import math
import os
import pathlib
import re
import signal
import sys
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import rich.console

from vivit_jax import command_line, help_text, paths
from vivit_jax.data.given import Given
from vivit_jax.data.joined import Joined
from vivit_jax.data.record import Source
from vivit_jax.data.watched import Watched, facts
from vivit_jax.predict import timeline
from vivit_jax.predict.files import FORMS, FeatureWriter, Row, RowWriter
from vivit_jax.predict.terminal import Printed, Progress, show
from vivit_jax.signals import lasting_interrupts
from vivit_jax.telling.printable import printable, warning_line

if TYPE_CHECKING:  # importing jax takes a while, and --help needs none
    from vivit_jax.inference import Prediction, Predictor

FEATURES = ('pre_logits', 'encoded', 'tokens')
DTYPES = ('float32', 'bfloat16')


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    warnings.formatwarning = warning_line
    options, overrides = _parse(sys.argv[1:] if arguments is None else list(arguments))
    traced = os.environ.get('VIVIT_JAX_TRACEBACK')
    try:
        _check(options)
        with lasting_interrupts():
            return predict(options, overrides)
    except KeyboardInterrupt:
        return _fail('stopped', 130)
    except BrokenPipeError:
        # Nobody reads any more; what is still in the buffer must not fail when Python ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except (ValueError, OSError, ImportError) as error:
        if traced or '\n' in str(error):
            raise
        return _fail(f'error: {error}', 2)
    except RuntimeError as error:  # jax's
        if traced or 'RESOURCE_EXHAUSTED' not in str(error):
            raise
        return _fail('error: out of device memory: try --batch_size=1, or fewer --views', 2)


def _fail(message: str, code: int) -> int:
    print(printable(message), file=sys.stderr)
    return code


def _parse(arguments: list[str]) -> tuple[argparse.Namespace, dict[str, str]]:
    parser = help_text.parser(__doc__, prog='python -m vivit_jax.predict')
    add = parser.add_argument
    add('names', nargs='+', metavar='NAME', help='files, folders, tables, patterns, splits')
    add('--checkpoint', required=True, metavar='DIR', help="a run's folder, its checkpoints/STEP, or weights")
    add('--top', type=int, default=5, metavar='N', help='classes of each head; 0: all; default: 5')
    add('--views', metavar='TxS', help="clips times crops to average, as 4x3 or 1; default: the run's")
    add('--batch_size', type=int, default=0, metavar='N', help="clips computed at once; default: the run's")
    add('--dtype', metavar='TYPE', help='compute in float32 or bfloat16; default: in what the run trained in')
    add('--window', type=float, default=0.0, metavar='S', help='seconds: predict each part of this length')
    add('--every', type=float, default=0.0, metavar='S', help='seconds between their beginnings; default: S')
    add('--timeline', metavar='FILE.png', help='draw the probabilities of the windows over time')
    add('--json', action='store_true', help='print a JSON object a line')
    add('--csv', action='store_true', help='print CSV')
    add(
        '--output', metavar='FILE', help='write FILE.csv, FILE.json (a list) or FILE.jsonl (an object a line)'
    )
    add('--features', metavar='FILE.npz', help='write what the model computes before its head, not classes')
    add('--feature', choices=FEATURES, default='pre_logits', help='which; default: pre_logits')
    options, rest = parser.parse_known_args(arguments)
    return options, command_line.overrides(parser, rest)


def _check(options: argparse.Namespace) -> None:
    """Raises where options contradict each other, before anything takes time."""
    for option, ending in (('timeline', '.png'), ('features', '.npz')):
        path = getattr(options, option)
        if path is not None and not path.endswith(ending):
            raise ValueError(f'--{option}={path}: write FILE{ending}')
    if options.output is not None and _form(options.output) not in FORMS:
        raise ValueError(f'--output={options.output}: write FILE.csv, FILE.json or FILE.jsonl')
    if options.top < 0 or options.batch_size < 0:
        raise ValueError(f'--top={options.top}, --batch_size={options.batch_size}: must not be below 0')
    if options.dtype not in (None, *DTYPES):
        raise ValueError(f'--dtype={options.dtype}: choose one of {", ".join(DTYPES)}')
    if options.timeline and not options.window:
        raise ValueError('--timeline needs a --window, as --window=2')
    if options.json and options.csv:
        raise ValueError('--json and --csv: choose one')
    if options.features and (options.json or options.csv or options.output or options.timeline):
        raise ValueError('--features predicts no classes: leave out --json, --csv, --output and --timeline')
    read = [os.path.realpath(name) for name in options.names]
    for path in filter(None, (options.output, options.timeline, options.features)):
        if os.path.realpath(path) in read:
            raise ValueError(f'{path} is to be read and to be written: choose another file')
        paths.path(path).parent.mkdir(parents=True, exist_ok=True)


def _form(path: str) -> str:
    return pathlib.PurePath(path).suffix.lower().removeprefix('.')


def _views(text: str | None) -> tuple[int, int] | None:
    """Reads `4x3`, or `4` for `4x1`."""
    if text is None:
        return None
    match = re.fullmatch(r'([1-9]\d*)(?:x([13]))?', text)
    if not match:
        raise ValueError(f'--views={text}: write clips x crops, the crops being 1 or 3, as 4x3 or 1')
    return int(match[1]), int(match[2] or 1)


def predict(options: argparse.Namespace, overrides: Mapping[str, str]) -> int:
    """Predicts what the options name.

    Returns:
        The exit code.

    Raises:
        ValueError: If there is a mistake in the options; one line.
    """
    views = _views(options.views)
    if (workers := overrides.get('data.workers', '0')) != '0':
        # Which files another process could not read would not be known in this one.
        raise ValueError(
            f'--config.data.workers={workers}: predict reads in this process alone; set --config.data.threads'
        )
    if options.dtype and (other := overrides.get('model.dtype', options.dtype)) != options.dtype:
        raise ValueError(f'--dtype={options.dtype} and --config.model.dtype={other}: choose one')
    notes = rich.console.Console(stderr=True, highlight=False, soft_wrap=True, markup=False, emoji=False)
    out = rich.console.Console(highlight=False, soft_wrap=True, markup=False, emoji=False)
    with Progress(out if out.is_terminal else notes) as progress:
        with progress.phase('loading the model'):
            from vivit_jax import compile_cache, experiment, feeding, host_memory, inference

            compile_cache.enable()
            host_memory.keep()
            model = inference.load(options.checkpoint, overrides, dtype=options.dtype)
        looking = experiment.examination(model.config, progress.counter('looking into files'))
        source = model.open(options.names, window=options.window, every=options.every, looking=looking)
        for name, cause in source.bad:
            _fail(f'{name}: {cause}', 1)
        watched = _watched(model, source)
        mirrors = 2 ** len(feeding.mirrored_axes(model.config))
        clips = len(source) * math.prod(views or model.views) * mirrors
        phase = 'computing features' if options.features else 'predicting'
        counted = progress.counter(phase, examples=len(source), clips=clips)
        running = {'views': views, 'batch_size': options.batch_size, 'on_batch': counted}
        if not len(source):
            done = 0
        elif options.features:
            done = _features(options, model, watched, running)
        else:
            done = _predictions(options, model, watched, running, out)
    bad = len(source.bad) + len(watched.unreadable)
    _tell(options, notes, done, bad)
    return 2 if not done else 1 if bad else 0


def _watched(model: 'Predictor', source: Source) -> Watched:
    """Wraps a source, so that what cannot be read is noted."""
    given = [isinstance(part, Given) for part in (source.parts if isinstance(source, Joined) else (source,))]
    data = model.config.data
    # Bytes of MedMNIST's own volumes and the floats of a file's would not make a batch.
    as_float = data.source == 'volumes' or (data.source == 'medmnist' and any(given) and not all(given))
    return Watched(source=source, channels=data.channels, as_float=as_float)


def _tell(options: argparse.Namespace, notes: rich.console.Console, done: int, bad: int) -> None:
    """Says what was written, and how many could not be read."""
    written = [path for path in (options.output, options.features, options.timeline) if path and done]
    if written:
        notes.print(printable(f'{done:,} example{"s" if done > 1 else ""}: {", ".join(written)}'))
    if bad and done + bad > 1:
        notes.print(f'{bad:,} of {done + bad:,} could not be read')


def _features(
    options: argparse.Namespace, model: 'Predictor', watched: Watched, running: Mapping[str, Any]
) -> int:
    """Writes features; returns the number of examples."""
    writer, done = FeatureWriter(paths.path(options.features)), 0
    try:
        for name, features in model.featured(watched, options.feature, **running):
            number = int(name)
            if _is_there(watched, number):
                span = facts(watched.source, number).span
                writer.write(watched.source[number].name, span, features)
                done += 1
    finally:
        writer.end()
    return done


def _predictions(
    options: argparse.Namespace,
    model: 'Predictor',
    watched: Watched,
    running: Mapping[str, Any],
    out: rich.console.Console,
) -> int:
    """Writes and prints predictions as they come; returns their number."""
    done = 0
    largest = max(model.head_sizes, default=1)
    top = min(options.top or largest, largest)
    tracks = timeline.Tracks(model.heads, model.class_names)
    with contextlib.ExitStack() as stack:
        parts = getattr(watched.source, 'parts', (watched.source,))
        truth = any(not isinstance(part, Given) for part in parts)
        begin = functools.partial(RowWriter, heads=list(model.heads), top=top, truth=truth)
        writers = []
        if options.output:
            file = paths.open_text(paths.path(options.output), 'w', errors='surrogateescape', newline='')
            writers.append(begin(stack.enter_context(file), _form(options.output)))
        if options.json or options.csv:
            writers.append(begin(_stdout(), 'csv' if options.csv else 'jsonl'))
        for writer in writers:
            stack.callback(writer.end)
        if options.timeline:
            stack.callback(tracks.write, paths.path(options.timeline))
        for prediction in model.predictions(watched, **running):
            number = int(prediction.name)
            if not _is_there(watched, number):
                continue
            row = row_of(model, watched.source, number, prediction, top)
            for writer in writers:
                writer.write(row)
            if options.timeline and row.span and row.file:
                tracks.add(row.name, row.file, row.span, prediction.probabilities)
            if not writers:
                show(row, out, model.class_names)
            done += 1
    return done


def _is_there(watched: Watched, number: int) -> bool:
    """Tells whether an example could be read, and says so on stderr where not."""
    if number in watched.unreadable:
        _fail(f'{watched.source[number].name}: {watched.unreadable[number]}', 1)
    return number not in watched.unreadable


def _stdout() -> Any:
    """Returns the standard output, which names of any bytes can be written to; no commands to a terminal."""
    if hasattr(sys.stdout, 'reconfigure'):
        sys.stdout.reconfigure(encoding='utf-8', errors='surrogateescape')
    return Printed(sys.stdout) if sys.stdout.isatty() else sys.stdout


def row_of(model: 'Predictor', source: Source, index: int, prediction: 'Prediction', top: int) -> Row:
    """Puts together all that is told of an example."""
    known = facts(source, index)
    truth = None
    if isinstance(known.label, tuple) and isinstance(known.label[0], float):
        truth = '|'.join(name for name, one in zip(model.class_names, known.label, strict=True) if one > 0.5)
    elif known.label is not None:
        numbers = np.atleast_1d(known.label).tolist()
        heads = model.heads.values()
        truth = ' + '.join(model.class_names[part][k] for part, k in zip(heads, numbers, strict=True))
    best = {head: prediction.top(top, head) for head in model.heads}
    return Row(name=source[index].name, top=best, file=known.file, span=known.span, truth=truth)


if __name__ == '__main__':
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends as Ctrl-C does
    sys.exit(main())
