"""What may stand in the files of a run: the rest is left out of a report, which says so."""

import math
from typing import Any

# A form is one of these words, a list of one form, a dict of forms by key (EACH: of every other key), or a pair: of
# what is no object, and of objects.
NUMBER, FINITE, COUNT, TEXT, FLAG = 'number', 'finite', 'count', 'text', 'flag'
EACH = object()
LARGEST = 2**53  # of a count

Form = Any

EVALUATION: Form = {
    EACH: {
        **dict.fromkeys(('count', 'left_out', 'unreadable'), COUNT),
        'views': [COUNT],
        'dtype': TEXT,
        'average_precision': (NUMBER, {EACH: NUMBER}),  # of each class
        EACH: (NUMBER, {EACH: {'examples': COUNT, EACH: NUMBER}}),  # a metric; several of each class
    }
}
FACTS: Form = {
    **dict.fromkeys(
        ('command', 'version', 'commit', 'started', 'ended', 'exit', 'host', 'platform', 'python'), TEXT
    ),
    **dict.fromkeys(('peak_flops_source', 'peak_memory_kind', 'xla_flags'), TEXT),
    **dict.fromkeys(('dirty', 'deterministic', 'memory_kept'), FLAG),
    'packages': {EACH: TEXT},
    'devices': [{'kind': TEXT, 'platform': TEXT, 'count': COUNT}],
    'processes': COUNT,
    'sessions': [
        {
            **dict.fromkeys(('started', 'ended', 'exit', 'command', 'host'), TEXT),
            **dict.fromkeys(('first_step', 'last_step'), COUNT),
        }
    ],
    EACH: (FINITE, {}),
}
CONVERSION: Form = {
    'summary': TEXT,
    'notes': [TEXT],
    'parameters': {EACH: {'action': TEXT, 'note': TEXT}},
    'unused': {EACH: {'reason': TEXT}},
}
SCALARS: Form = {'step': COUNT, 'split': TEXT, EACH: (NUMBER, {})}


def fitting(value: Any, form: Form, left: list[str], place: str = '') -> Any:
    """Returns what of a value of JSON has a form, None if nothing has.

    Args:
        value: As it was read.
        form: What it should be, see above.
        left: The places of what is left out are added here, as `test.top_1`.
        place: Where the value stands.
    """
    if value is None:  # not known
        return None
    if isinstance(form, tuple):
        form = form[isinstance(value, dict)]
    if form == {} and isinstance(value, dict):  # an object of another version, of which nothing is shown
        return None
    if isinstance(form, dict) and isinstance(value, dict):
        found = {
            key: fitting(inner, form.get(key, form.get(EACH, '')), left, f'{place}.{key}' if place else key)
            for key, inner in value.items()
            if key in form or EACH in form  # what a later version adds is none of this one's business
        }
        return {key: inner for key, inner in found.items() if inner is not None}
    if isinstance(form, list) and isinstance(value, list):
        parts = [fitting(inner, form[0], left, f'{place}[{number}]') for number, inner in enumerate(value)]
        return [part for part in parts if part is not None]
    if _is(value, form):
        return value
    left.append(place)
    return None


def _is(value: Any, form: Form) -> bool:
    if form == TEXT:
        return isinstance(value, str)
    if form == FLAG:
        return isinstance(value, bool)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    if form == COUNT:
        return isinstance(value, int) and 0 <= value <= LARGEST
    # A metric may be undefined, and a loss infinite; but for nothing is a number so large that its sums overflow.
    return abs(value) <= 1e100 if form == FINITE else form == NUMBER and not 1e100 < abs(value) < math.inf
