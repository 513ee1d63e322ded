"""Puts a report together: which sections there are, in which order, and what each begins with."""

from collections.abc import Callable, Mapping, Sequence

import jax

import vivit_jax
from vivit_jax import inference
from vivit_jax.data.record import Source
from vivit_jax.inference import Predictor
from vivit_jax.report import classes, clips, overview, provenance, training
from vivit_jax.report.intervals import estimates
from vivit_jax.report.markup import Content, Html, details, join, paragraph, tag
from vivit_jax.report.page import Section, page
from vivit_jax.report.reading import Run

CONFUSIONS = 'A row is a true class, a column what the model said. Colour tells the share of the row.'
CLASSES = 'Click a title to sort. Accuracy is the share of a class’s examples that were recognised.'
CALIBRATION = (
    'Where points lie below the diagonal the model is surer than it is right. Whiskers are intervals of 95 %; the '
    'calibration error is the mean distance from the diagonal, over decisions sorted into 15 bins.'
)
SEVERAL_LABELS = (
    ' A decision here is that one of an example’s five most probable classes is among its labels.'
)
ATTENTION = (
    'Attention rollout over the central clip: colour begins where a place has more than an even share in the '
    'prediction, and is brightest where it has most. It tells what was looked at, not why.'
)


def compose(
    runs: Sequence[Run], *, predictor: Predictor | None, sources: Mapping[str, Source], with_clips: bool
) -> str:
    """Returns the report.

    Args:
        runs: What it is about.
        predictor: The model of the one run; None: it is read.
        sources: The splits of the one run that are open.
        with_clips: Whether to show clips and attention.
    """
    found = [{split: estimates(run, split) for split in run.results} for run in runs]
    split = overview.first_split(runs)
    if len(runs) == 1:
        head = [*overview.headline(runs[0], found[0], split), overview.key_figures(runs[0])]
        title = f'{runs[0].config["name"]} – {runs[0].folder}'
    else:
        head = overview.several(runs, found)
        title = ' – '.join(run.label for run in runs)
    sections = [
        Section('results', 'Results', '', overview.results(runs, found)),
        Section(
            'training',
            'Training',
            'As logged, each point the mean since the one before.',
            training.section(runs),
        ),
        *_of_classes(runs, split),
        *(_of_clips(runs, split, predictor, sources) if with_clips else []),
        Section('bad-files', 'Bad files', 'Examples that could not be read.', _bad(runs)),
    ]
    if any(run.conversion for run in runs):
        started = [run for run in runs if run.conversion]
        sections.append(Section('weights', 'Starting weights', '', _each(runs, overview.conversion, started)))
    settings = 'Settings that are not the default; all of them are in config.json.'
    sections += [
        Section('settings', 'Settings', settings, provenance.settings(runs)),
        Section('provenance', 'Command and machine', '', _each(runs, provenance.what_was_run)),
    ]
    notes = [(run, note) for run in runs for note in run.notes]
    if notes:
        listed = (tag('li', f'{run.folder}: {note}') for run, note in notes)
        sections.append(Section('notes', 'What could not be read', '', [tag('ul', *listed)]))
    foot = join(
        ['Written by vivit_jax ', vivit_jax.__version__, ': ', tag('code', 'python -m vivit_jax.report')]
    )
    return page(title, head, sections, foot)


def _of_classes(runs: Sequence[Run], split: str) -> list[Section]:
    """Returns the sections on classes: of the first test split in full, of the others what was confused."""
    if not split:
        return []

    def confused(run: Run) -> list[Html]:
        others = [other for other in run.results if other != split and other in run.confusions]
        behind = [details(f'The same for {other}', *classes.confusions(run, other)) for other in others]
        return [*classes.confusions(run, split), *behind]

    several = any(run.several_labels for run in runs)
    parts = []
    if any(run.confusions for run in runs):
        confusing = [run for run in runs if run.confusions]
        parts.append(
            Section('confusions', f'Confusions on {split}', CONFUSIONS, _each(runs, confused, confusing))
        )
    note = 'Click a title to sort.' if several else CLASSES
    calibrated = CALIBRATION + (SEVERAL_LABELS if several else '')
    return [
        *parts,
        Section('classes', f'Classes on {split}', note, classes.per_class(runs, split)),
        Section('calibration', f'Confidence on {split}', calibrated, classes.calibration(runs, split)),
    ]


def _bad(runs: Sequence[Run]) -> list[Html]:
    """Returns the examples that were left out, for each run that has such."""
    some = [run for run in runs if run.bad]
    return _each(runs, overview.bad_files, some) if some else [paragraph('No example was bad.')]


def _each(
    runs: Sequence[Run], content: Callable[[Run], list[Html]], some: Sequence[Run] | None = None
) -> list[Html]:
    """Returns content for each run (or some of them), under its name where there are several."""
    parts: list[Html] = []
    for run in runs if some is None else some:
        parts += [tag('h3', run.label)] if len(runs) > 1 else []
        parts += content(run)
    return parts


def _of_clips(
    runs: Sequence[Run], split: str, predictor: Predictor | None, sources: Mapping[str, Source]
) -> list[Section]:
    """Returns the sections that need data, and for attention the model."""
    if not any(run.examples.get(split) for run in runs):
        return []
    opened: dict[str, Source] = dict(sources)

    def source_of(run: Run) -> Source:
        if len(runs) == 1:
            if split not in opened:
                opened[split] = clips.open_split(run, split)
            return opened[split]
        return clips.open_split(run, split)

    def shown(run: Run) -> list[Html]:
        return clips.section(run, split, source_of(run))

    def attended(run: Run) -> list[Html]:
        if jax.process_count() > 1:
            raise ValueError(
                'the model is spread over several machines; python -m vivit_jax.report shows it on one'
            )
        if predictor is None and not (run.folder / 'checkpoints').is_dir():
            raise ValueError('there is no checkpoint')
        model = inference.load(run.folder) if predictor is None else predictor
        return clips.attention(run, split, source_of(run), model)

    return [
        Section(
            'clips',
            f'Clips of {split}',
            'Frames (of a volume: slices) are spread evenly over the whole.',
            _each(runs, _try(shown)),
        ),
        Section('attention', 'Where the model looks', ATTENTION, _each(runs, _try(attended))),
    ]


def _try(content: Callable[[Run], list[Html]]) -> Callable[[Run], list[Html]]:
    """Says in a line why there is nothing, where there is nothing: data move, checkpoints are deleted."""

    def attempt(run: Run) -> list[Html]:
        try:
            return content(run)
        except Exception as error:
            kind = '' if isinstance(error, ValueError | OSError) else f'{type(error).__name__}: '
            words: Content = ' '.join(f'{kind}{error}'.split())
            return [paragraph('Not shown: ', words)]

    return attempt
