"""How a report says numbers, and what it calls them."""

import datetime
import math
from typing import Any

from vivit_jax.report.numbers import Interval

# The beginning of names that are shares, shown in per cent; others are shown as numbers.
SHARES = (
    'top_1',
    'top_5',
    'mean_per_class',
    'accuracy',
    'balanced_accuracy',
    'majority_accuracy',
    'mean_recall',
)
NAMES = {
    'top_1': 'top-1 accuracy',
    'top_5': 'top-5 accuracy',
    'mean_per_class': 'mean accuracy of the classes',
    'auc': 'area under the ROC curve (AUC)',
    'balanced_accuracy': 'balanced accuracy',
    'calibration_error': 'calibration error',
    'majority_accuracy': 'accuracy of naming the most frequent class',
    'mean_average_precision': 'mean average precision',
    'mean_precision': 'mean precision of the classes',
    'mean_jaccard': 'mean Jaccard index of the classes',
    'loss': 'loss',
    'clips_per_second': 'clips a second',
    'grad_norm': 'gradient norm',
    'update_ratio': 'update over parameters',
    'learning_rate': 'learning rate',
    'data_wait': 'waiting for data',
}
PERCENT = '\N{NO-BREAK SPACE}%'
SUPERSCRIPT = str.maketrans('-0123456789', '⁻⁰¹²³⁴⁵⁶⁷⁸⁹')
NOT_METRICS = ('count', 'left_out', 'unreadable', 'views')


def metric(name: str, heads: tuple[str, ...] = ()) -> str:
    """Returns what a metric is called, as `noun: top-1 accuracy`."""
    for head in (*heads, 'action'):
        if name.startswith(f'{head}_') and name not in NAMES:
            return f'{head}: {metric(name.removeprefix(f"{head}_"))}'
    return NAMES.get(name, name.replace('_', ' '))


def is_share(name: str, heads: tuple[str, ...] = ()) -> bool:
    """Tells whether a metric is shown in per cent."""
    for head in (*heads, 'action'):
        name = name.removeprefix(f'{head}_')
    return name in SHARES


def value(name: str, number: float, heads: tuple[str, ...] = ()) -> str:
    """Returns a metric's value: `98.4 %`, or `0.913`."""
    if is_share(name, heads):
        return percent(number)
    return f'{number:.3f}' if 0 <= number <= 1 and 'loss' not in name else short(number)


def interval(name: str, bounds: Interval, heads: tuple[str, ...] = ()) -> str:
    """Returns an interval as `97.7 – 98.9 %`."""
    low, high = (value(name, bound, heads) for bound in bounds)
    return f'{low.removesuffix(PERCENT)} – {high}'


def percent(share: float) -> str:
    """Returns a share as `98.4 %`."""
    return f'{100 * share:.1f}{PERCENT}' if math.isfinite(share) else 'undefined'


def short(number: Any) -> str:
    """Returns a number with three or four digits that count."""
    if isinstance(number, bool) or not isinstance(number, int | float):
        return str(number)
    if isinstance(number, int):
        return f'{number:,}'
    if not math.isfinite(number):
        return str(number)
    if number == 0 or 1e-4 <= abs(number) < 1e4:
        return f'{number:.3g}' if abs(number) < 1 else f'{number:.4g}'
    if 1e4 <= abs(number) < 1e7:
        return f'{number:,.0f}'
    digits, _, power = f'{number:.2e}'.partition('e')
    return f'{digits}×10{str(int(power)).translate(SUPERSCRIPT)}'


def large(number: float) -> str:
    """Returns a count as `143 k` or `86.4 M`."""
    for size, letter in ((1e15, ' P'), (1e12, ' T'), (1e9, ' G'), (1e6, ' M'), (1e3, ' k')):
        if abs(number) >= size:
            return f'{number / size:.3g}{letter}'
    return f'{number:.3g}'


def memory(size: float) -> str:
    """Returns bytes as `3.2 GiB`."""
    return f'{size / 2**30:.1f} GiB' if size >= 2**30 else f'{size / 2**20:.0f} MiB'


def seconds(number: float) -> str:
    """Returns seconds as `48 s`, `3 min 20 s` or `5 h 07 min`."""
    whole = round(number)
    if whole < 60:
        return f'{number:.1f} s' if number < 10 else f'{whole} s'
    if whole < 3600:
        return f'{whole // 60} min {whole % 60:02d} s'
    hours = f'{whole // 3600 % 24} h {whole // 60 % 60:02d} min'
    return f'{whole // 86400} d {hours}' if whole >= 86400 else hours


def moment(text: Any) -> str:
    """Returns an ISO 8601 time as `21 November 2026, 10:04 UTC`, and anything else as it is."""
    try:
        when = datetime.datetime.fromisoformat(str(text))
    except ValueError:
        return str(text)
    if when.tzinfo is None:
        return f'{when.day} {when:%B %Y, %H:%M}'
    when = when.astimezone(datetime.UTC)
    return f'{when.day} {when:%B %Y, %H:%M} UTC'


def setting(content: Any) -> str:
    """Returns a value of a configuration as one would write it."""
    if isinstance(content, list | tuple):
        return ', '.join(map(setting, content)) if content else '()'
    if isinstance(content, str):
        return content or "''"
    return repr(content)
