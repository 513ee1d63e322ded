"""`tf.train.SequenceExample` and `tf.train.Example` without TensorFlow: the wire format of protocol buffers by hand.

Only what is asked for is looked at: frames stay where they are, as views of the bytes. Lengths are compared with what
there is before anything is done with them, so that garbage ends in a ValueError and never in a long wait.

    SequenceExample: context (1, Features), feature_lists (2, FeatureLists)
    Example:         features (1, Features)
    Features:        map (1) of key (1) to Feature (2)
    FeatureLists:    map (1) of key (1) to FeatureList (2): repeated Feature (1)
    Feature:         bytes_list (1), float_list (2) or int64_list (3), each of repeated values (1)

Sources: https://protobuf.dev/programming-guides/encoding and TensorFlow's `core/example/{example,feature}.proto`.
"""

import dataclasses
from collections.abc import Iterator

import numpy as np

VARINT, EIGHT_BYTES, LENGTH, FOUR_BYTES = 0, 1, 2, 5  # how a value is stored


@dataclasses.dataclass(frozen=True, slots=True)
class SequenceExample:
    """The features of an example, not looked into yet.

    Attributes:
        context: By key, those of the whole.
        lists: By key, those that come in sequences.
    """

    context: dict[str, memoryview]
    lists: dict[str, memoryview]

    def integers(self, key: str) -> list[int]:
        """Returns the integers of a feature of the whole; none where there is no such feature."""
        return [value for value in _values(self.context.get(key)) if isinstance(value, int)]

    def floats(self, key: str) -> list[float]:
        """Returns the floats of a feature of the whole."""
        return [value for value in _values(self.context.get(key)) if isinstance(value, float)]

    def texts(self, key: str) -> list[str]:
        """Returns the texts of a feature of the whole."""
        return [str(value, 'utf-8', 'replace') for value in self.octets(key)]

    def octets(self, key: str) -> list[memoryview]:
        """Returns the byte strings of a feature of the whole, else those of the sequence of that name."""
        if key in self.lists:
            features = (feature for number, feature in _fields(self.lists[key]) if number == 1)
            found = [value for feature in features for value in _values(feature)]
        else:
            found = _values(self.context.get(key))
        return [value for value in found if isinstance(value, memoryview)]


def parse(data: bytes) -> SequenceExample:
    """Finds the features of a serialised SequenceExample, or of an Example, which is one without sequences.

    Raises:
        ValueError: If it is neither; so do the methods of what is returned.
    """
    parts: tuple[dict[str, memoryview], ...] = ({}, {})
    for number, features in _fields(memoryview(data)):
        if number not in (1, 2):
            continue
        for inner, entry in _fields(features):
            if inner == 1:
                pair = dict(_fields(entry))
                parts[number - 1][str(_view(pair.get(1, b'')), 'utf-8', 'replace')] = _view(pair.get(2, b''))
    return SequenceExample(*parts)


def _values(feature: object) -> list[memoryview | float | int]:
    found: list[memoryview | float | int] = []
    for kind, values in _fields(feature if feature is not None else b''):
        for number, value in _fields(values):
            if number != 1:
                continue
            if kind == 1:
                found.append(_view(value))
            elif kind == 2:
                found += np.frombuffer(_view(value), '<f4').tolist()
            elif kind == 3:
                found += [_signed(value)] if isinstance(value, int) else _packed(_view(value))
    return found


def _fields(message: object) -> Iterator[tuple[int, int | memoryview]]:
    """Yields (number, value) of every field of a message."""
    view = _view(message)
    at, end = 0, len(view)
    while at < end:
        tag, at = _varint(view, at)
        wire = tag & 7
        if wire == VARINT:
            value, at = _varint(view, at)
            yield tag >> 3, value
            continue
        if wire == LENGTH:
            length, at = _varint(view, at)
        elif wire in (EIGHT_BYTES, FOUR_BYTES):
            length = 8 if wire == EIGHT_BYTES else 4
        else:
            raise ValueError(f'no protocol buffer: a value is stored as {wire}')
        if length > end - at:
            raise ValueError(f'no protocol buffer: {length} bytes are promised where {end - at} are left')
        yield tag >> 3, view[at : at + length]
        at += length


def _varint(view: memoryview, at: int) -> tuple[int, int]:
    """Returns the number at a place, seven bits a byte, and the place after it."""
    value = 0
    for shift, octet in enumerate(view[at : at + 10]):
        value |= (octet & 0x7F) << 7 * shift
        if octet < 0x80:
            return value & 0xFFFFFFFFFFFFFFFF, at + shift + 1
    raise ValueError('no protocol buffer: a number does not end')


def _packed(view: memoryview) -> list[int]:
    found, at = [], 0
    while at < len(view):
        value, at = _varint(view, at)
        found.append(_signed(value))
    return found


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


def _view(value: object) -> memoryview:
    if isinstance(value, int):
        raise ValueError('no protocol buffer of this kind: a number stands where a message should')
    return value if isinstance(value, memoryview) else memoryview(value)  # type: ignore[arg-type]
