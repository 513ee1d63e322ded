"""Classes and their numbers, from texts."""

from collections import Counter

import pytest

from vivit_jax.data.listing.labels import first_class, label_of, number_classes, one_hot, parts_of


def number(*texts, **options):
    return number_classes('label', {'train.csv': Counter(texts)}, **options)


def test_names_are_sorted():
    assert number('run', 'jump', 'run', 'Ärger', '7') == (
        ['7', 'jump', 'run', 'Ärger'],
        {'7': 0, 'jump': 1, 'run': 2, 'Ärger': 3},
    )


def test_numbers_stand_for_themselves():
    assert number('2', '0', '2') == (['0', '1', '2'], {'2': 2, '0': 0})
    assert number('2', '0', size=4) == (['0', '1', '2', '3'], {'2': 2, '0': 0})
    assert number('02', '3.0', '3')[1] == {'02': 2, '3.0': 3, '3': 3}


def test_what_is_no_class_among_numbers():
    classes, numbers = number('0', '1', '1', '-1', 'run', '1.5', '100000', '²', '9' * 5000)
    assert classes == ['0', '1']
    bound = 'must be a number in [0, 100000) (or more: --config.data.num_classes)'
    for text in ('-1', 'run', '1.5', '100000', '²'):
        assert numbers[text] == f'label={text!r}: {bound}'
    assert numbers['9' * 5000] == f'label={"9" * 59 + "…"!r}: {bound}'
    classes, numbers = number('0', '4', '4', size=4)
    assert (classes, numbers['4']) == (['0', '1', '2', '3'], "label='4': must be a number in [0, 4)")
    assert number('0', '123456', size=200_000)[1]['123456'] == 123456


def test_known_names_give_the_order():
    known = {'names': ['run', 'jump', '12'], 'names_file': 'classes.txt'}
    assert number('jump', '0', '12', **known) == (
        ['run', 'jump', '12'],
        {'run': 0, 'jump': 1, '12': 2, '0': 0},
    )
    numbers = number('hop', '3', **known)[1]
    assert numbers['hop'] == "label='hop': must be one of the 3 classes of classes.txt: run, jump, 12"
    assert numbers['3'] == "label='3': must be one of the 3 classes of classes.txt: run, jump, 12"
    with pytest.raises(ValueError, match=r'classes.txt has 3 classes, but data.num_classes gives label 4'):
        number('run', size=4, **known)


def test_tables_must_be_alike():
    texts = {'train.csv': Counter(['run', 'jump']), 'validation.csv': Counter(['0', '1', 'x'])}
    with pytest.raises(
        ValueError, match=r"^validation.csv has numbers in the column label, but train.csv has names, as 'run"
    ):
        number_classes('label', texts)
    texts['validation.csv'] = Counter()
    assert number_classes('label', texts)[0] == ['jump', 'run']


def test_more_texts_add_no_classes():
    assert number('run', 'jump', more=['run', 'hop']) == (
        ['jump', 'run'],
        {'jump': 0, 'run': 1, 'hop': "label='hop': must be one of the 2 classes of train.csv: jump, run"},
    )
    assert number('0', '2', more=['1', '3']) == (
        ['0', '1', '2'],
        {'0': 0, '2': 2, '1': 1, '3': "label='3': must be a number in [0, 3)"},
    )


def test_labels_of_rows():
    numbers = [{'a': 0, 'b': 1, 'c': 'wrong c'}, {'x': 0, 'y': 1, 'z': 2}]
    heads, sizes = ('noun', 'verb'), (2, 3)
    assert label_of(heads[:1], ['b'], numbers[:1], sizes[:1], False) == 1
    assert label_of(heads, ['b', 'z'], numbers, sizes, False) == (1, 2)
    assert label_of(heads, ['c', 'z'], numbers, sizes, False) == 'wrong c'
    assert label_of(heads, ['a', ''], numbers, sizes, False) == 'verb is empty'
    assert label_of(heads[:1], ['a|b'], numbers[:1], sizes[:1], True) == (1.0, 1.0)
    assert label_of(heads, ['b', 'x | z'], numbers, sizes, True) == (0.0, 1.0, 1.0, 0.0, 1.0)
    assert label_of(heads, ['b|c', 'x'], numbers, sizes, True) == 'wrong c'
    assert label_of(heads, [' | ', 'x'], numbers, sizes, True) == 'noun is empty'


def test_parts():
    assert list(parts_of(['a|b', '', 'c | a|'], True)) == ['a', 'b', 'c', 'a']
    assert list(parts_of(['a|b', '', 'c'], False)) == ['a|b', 'c']
    assert one_hot([2, 0], 4) == (1.0, 0.0, 1.0, 0.0)


def test_the_class_that_counts():
    assert [first_class(label) for label in (3, (4, 5), (0.0, 1.0, 1.0), 'broken')] == [3, 4, 1, -1]
