"""The section on what was run: settings that are not the default, code, command, machine, time."""

from collections.abc import Sequence
from typing import Any

from vivit_jax import config as config_module
from vivit_jax.report import wording
from vivit_jax.report.markup import Cell, Content, Html, details, join, paragraph, table, tag
from vivit_jax.report.reading import Run

NO_FACTS = 'run.json is not there: command, version, machine and times of this run are not known.'


def settings(runs: Sequence[Run]) -> list[Html]:
    """Returns the settings that differ from the default; of several runs, first those in which they differ."""
    default = config_module.flatten(config_module.default_config())
    changed = list(
        dict.fromkeys(
            key
            for run in runs
            for key, value in run.config.items()
            if _plain(value) != _plain(default.get(key))
        )
    )
    between = [key for key in changed if len({repr(_setting(run, key)) for run in runs}) > 1]
    labels = ['here'] if len(runs) == 1 else [run.label for run in runs]

    def rows(keys: Sequence[str]) -> list[list[Content | Cell]]:
        return [
            [
                tag('code', key),
                Cell(wording.setting(default[key]) if key in default else '–', None, 'muted'),
                *(_value(_setting(run, key), _plain(default.get(key))) for run in runs),
            ]
            for key in keys
        ]

    titles = ['key', 'default', *labels]
    if len(runs) == 1:
        return [table(titles, rows(changed), kind='settings')]
    parts = [tag('h4', 'Where the runs differ')]
    parts.append(table(titles, rows(between), kind='settings') if between else paragraph('In nothing.'))
    same = [key for key in changed if key not in between]
    if same:
        parts.append(details('What all of them change', table(titles, rows(same), kind='settings')))
    return parts


def _setting(run: Run, key: str) -> Any:
    """Returns the value of a key; None where it is only known to another run's version."""
    return _plain(run.config[key]) if key in run.config else None


def _value(value: Any, default: Any) -> Cell:
    return Cell(wording.setting(value), None, 'muted' if value == default else None)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def what_was_run(run: Run) -> list[Html]:
    """Returns what is needed to do it again: command, code, machine, time, speed."""
    facts = run.facts
    if facts is None:
        return [paragraph(NO_FACTS)]
    rows: list[tuple[str, Content]] = []
    if facts.get('command'):
        rows.append(('command', tag('code', facts['command'])))
    if facts.get('version'):
        rows.append(('code', _code(facts)))
    if facts.get('started'):
        rows.append(('started', wording.moment(facts['started'])))
    if facts.get('ended'):
        rows.append(('ended', wording.moment(facts['ended'])))
    machine = ', '.join(filter(None, (facts.get('host'), facts.get('platform'))))
    if machine:
        rows.append(('machine', machine))
    if facts.get('devices'):
        told = [
            f'{each.get("count", "?")} × {each.get("kind", "?")} ({each.get("platform", "?")})'
            for each in facts['devices']
        ]
        processes = facts.get('processes') or 1
        rows.append(('devices', ', '.join(told) + (f', {processes} processes' if processes > 1 else '')))
    rows += _times(facts)
    packages = facts.get('packages') or {}
    if packages or facts.get('python'):
        versions = {'python': facts.get('python'), **packages}
        rows.append(
            ('packages', ', '.join(f'{name} {version}' for name, version in versions.items() if version))
        )
    pairs = (tag('div', tag('dt', name), tag('dd', value)) for name, value in rows)
    return [tag('dl', *pairs, class_='facts'), *_sessions(facts)]


def _code(facts: dict[str, Any]) -> Content:
    parts: list[Content] = [f'vivit_jax {facts["version"]}']
    if facts.get('commit'):
        parts.append(join(['commit ', tag('code', str(facts['commit'])[:12])]))
    if facts.get('dirty'):
        parts.append('with changes that are not committed')
    return join(parts, ', ')


def _times(facts: dict[str, Any]) -> list[tuple[str, Content]]:
    """Returns rows on where the time went, and how fast it was."""
    rows: list[tuple[str, Content]] = []
    spent = [
        f'{name} {wording.seconds(facts[key])}'
        for name, key in (
            ('training', 'train_seconds'), ('compiling', 'compile_seconds'), ('evaluating', 'evaluate_seconds'),
        )
        if isinstance(facts.get(key), int | float)
    ]  # fmt: skip
    if spent:
        rows.append(('time', ', '.join(spent)))
    if facts.get('clips_per_second'):
        speed = f'{facts["clips_per_second"]:.3g} clips a second'
        if facts.get('data_wait') is not None:
            speed += f', waiting for data {wording.percent(facts["data_wait"])} of the time'
        rows.append(('speed', speed))
    if facts.get('model_flops_per_second'):
        told = f'{wording.large(facts["model_flops_per_second"])}FLOP/s of the model (forward and backward)'
        if facts.get('mfu') is not None and facts.get('peak_flops'):
            told += (
                f', {wording.percent(facts["mfu"])} of the devices’ {wording.large(facts["peak_flops"])}FLOP/s '
                f'({facts.get("peak_flops_source") or "source unknown"})'
            )
        rows.append(('arithmetic', told))
    if facts.get('peak_memory_bytes'):
        kind = facts.get('peak_memory_kind') or 'unknown'
        told = f'{wording.memory(facts["peak_memory_bytes"])} ({kind})'
        if facts.get('predicted_memory_bytes'):
            told += f'; predicted for training: {wording.memory(facts["predicted_memory_bytes"])}'
        rows.append(('peak memory', told))
    return rows


def _sessions(facts: dict[str, Any]) -> list[Html]:
    sessions = facts.get('sessions') or []
    if len(sessions) < 2:
        return []
    rows = [
        [
            wording.moment(each.get('started', '')),
            wording.moment(each['ended']) if each.get('ended') else '–',
            Cell(f'{each.get("first_step", 0):,} – {each.get("last_step", 0):,}', None, 'number'),
            each.get('exit') or '–',
            each.get('host') or '–',
            tag('code', each.get('command') or '–'),
        ]
        for each in sessions
    ]
    return [tag('h4', 'Sessions'), table(['started', 'ended', 'steps', 'end', 'host', 'command'], rows)]
