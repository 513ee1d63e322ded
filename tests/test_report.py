"""The report of a run: its numbers against independent ones, its sections, and that nothing breaks the page."""

import base64
import hashlib
import html
import html.parser
import json
import re
import shutil
import subprocess
import sys
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from workdirs import NASTY, write_curves, write_workdir

from vivit_jax import config as config_module
from vivit_jax import experiment, inference, medical_metrics, metrics, report, sharding
from vivit_jax.report import charts, classes, clips, markup, numbers, reading, training, wording
from vivit_jax.report.__main__ import main
from vivit_jax.report.intervals import estimates
from vivit_jax.report.reading import Confusion, Decision, Example


class Page(html.parser.HTMLParser):
    """What a page holds: its elements with their attributes, its titles, its tables, its visible text."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.tables, self.titles, self.words = [], [], [], []
        self._open = []
        self.feed(text)
        self.close()
        assert not self._open, f'not closed: {self._open}'
        self.text = ' '.join(' '.join(self.words).split())

    def handle_starttag(self, name, attributes):
        self.elements.append((name, dict(attributes)))
        if name not in markup.VOID and name not in ('path', 'use', 'rect', 'line', 'circle'):
            self._open.append(name)
        if name == 'table':
            self.tables.append([])
        elif name == 'tr':
            self.tables[-1].append([])
        elif name in ('td', 'th'):
            self.tables[-1][-1].append('')
        elif name == 'h2':
            self.titles.append('')

    def handle_startendtag(self, name, attributes):
        self.elements.append((name, dict(attributes)))

    def handle_endtag(self, name):
        if self._open and self._open[-1] == name:
            self._open.pop()
        else:
            assert name in ('path', 'use', 'rect', 'line', 'circle'), f'{name} closes {self._open[-1:]}'

    def handle_data(self, data):
        if not {'script', 'style'} & set(self._open):
            self.words.append(data)
        if {'td', 'th'} & set(self._open):
            self.tables[-1][-1][-1] += data
        if 'h2' in self._open:
            self.titles[-1] += data

    def table(self, title):
        """The table whose first line begins so, as rows of text."""
        found = [table for table in self.tables if table[0][: len(title)] == title]
        assert len(found) == 1, (title, [table[0] for table in self.tables])
        return found[0]


def written(*folders, **options):
    path = report.write(list(folders), **{'clips': False, **options})
    return Page(path.read_text())


# Numbers.


@pytest.mark.parametrize(('hits', 'count'), [(0, 1), (1, 1), (0, 20), (7, 20), (20, 20), (1999, 2048)])
def test_wilsons_interval_is_scipys(hits, count):
    expected = stats.binomtest(hits, count).proportion_ci(method='wilson')
    assert numbers.wilson(hits / count, count) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_draws_are_of_all_examples_and_the_same_each_time():
    drawn = np.concatenate([*numbers.draws(50, 300)])
    assert drawn.shape == (300, 50)
    assert (drawn.sum(axis=1) == 50).all()
    assert abs(drawn.mean(axis=0) - 1).max() < 0.25  # 300 draws of variance 1: deviation 0.06
    assert np.array_equal(drawn, np.concatenate([*numbers.draws(50, 300)]))
    assert not np.array_equal(drawn, np.concatenate([*numbers.draws(50, 300, seed=1)]))


def test_draws_do_not_depend_on_the_chunk(monkeypatch):
    whole = np.concatenate([*numbers.draws(50, 30)])
    monkeypatch.setattr(numbers, 'CHUNK', 400)
    assert np.array_equal(np.concatenate([*numbers.draws(50, 30)]), whole)


def test_the_bootstrap_of_a_mean_is_that_of_theory():
    values = np.random.default_rng(0).normal(size=400)
    low, high = numbers.bootstrap(lambda weights: weights @ values / 400, 400)
    half = stats.norm.ppf(0.975) * values.std() / 20
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.012)


@pytest.mark.parametrize('name', ['recall', 'precision', 'jaccard'])
def test_means_over_classes_of_drawn_examples_are_those_of_repeated_ones(name):
    random = np.random.default_rng(0)
    labels, predicted = random.integers(0, 4, (2, 40))
    predicted[labels == 3] = 0
    drawn = next(numbers.draws(40, 20))
    expected = []
    for counts in drawn:
        confusion = metrics.confusion_matrix(np.repeat(predicted, counts), np.repeat(labels, counts), 4)
        expected.append(metrics.mean_over_classes(confusion)[name])
    found = numbers.class_means(name, labels, predicted)(drawn)
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_areas_and_precisions_of_drawn_examples_are_those_of_repeated_ones():
    random = np.random.default_rng(0)
    scores = random.integers(0, 6, (30, 3)) / 6  # with ties
    positive = random.random((30, 3)) < 0.3
    positive[:, 2] = np.arange(30) == 0  # absent from some draws
    drawn = next(numbers.draws(30, 20))
    areas, precisions = [], []
    for counts in drawn:
        some, truth = np.repeat(scores, counts, axis=0), np.repeat(positive, counts, axis=0)
        each = [medical_metrics.area_under_curve(some[:, k], truth[:, k]) for k in range(3)]
        areas.append(np.nanmean(each))
        precisions.append(np.nanmean(metrics.average_precision(some, truth)))
    assert (positive[:, 2] @ drawn.T == 0).any()
    np.testing.assert_allclose(numbers.mean_area(scores, positive)(drawn), areas, rtol=1e-12)
    np.testing.assert_allclose(
        numbers.mean_average_precision(scores, positive)(drawn), precisions, rtol=1e-12
    )


def test_the_calibration_error_is_that_of_the_metrics():
    random = np.random.default_rng(0)
    scores = random.dirichlet(np.ones(5), 200)
    labels = random.integers(0, 5, 200)
    bins, error = numbers.calibration(scores.max(axis=1), scores.argmax(axis=1) == labels)
    assert error == pytest.approx(medical_metrics.calibration_error(scores, labels), abs=1e-12)
    assert sum(part.count for part in bins) == 200
    assert all(0.2 <= part.confidence <= 1 for part in bins)


def test_every_metric_of_shares_has_an_interval_around_it(tmp_path):
    write_workdir(tmp_path / 'run', sizes=(3, 4), heads=('noun', 'verb'), examples=80)
    run = reading.read_run(tmp_path / 'run', 'run')
    found = estimates(run, 'test')
    hows = {name: estimate.how for name, estimate in found.items()}
    assert hows == {
        'noun_top_1': 'Wilson', 'noun_mean_per_class': 'bootstrap',
        'verb_top_1': 'Wilson', 'verb_mean_per_class': 'bootstrap',
        'action_top_1': 'Wilson', 'action_top_5': 'Wilson',
        'noun_mean_precision': 'bootstrap', 'noun_mean_jaccard': 'bootstrap',
        'verb_mean_precision': 'bootstrap', 'verb_mean_jaccard': 'bootstrap',
        'loss': '',
    }  # fmt: skip
    for name, estimate in found.items():
        if estimate.interval:
            low, high = estimate.interval
            assert 0 <= low < estimate.value < high <= 1, name
            assert high - low < 0.3, name
    assert estimates(run, 'test') == found


def test_precision_has_an_interval_where_the_scores_of_all_classes_are_kept(tmp_path):
    folder = tmp_path / 'run'
    scores, labels = write_workdir(folder, sizes=(7,), loss='sigmoid', examples=50)
    name = 'mean_average_precision'
    assert estimates(reading.read_run(folder, ''), 'test')[name].interval is None  # five of seven
    np.savez(folder / 'scores_test.npz', scores=scores, targets=labels)
    kept = estimates(reading.read_run(folder, ''), 'test')[name]
    assert kept.interval[0] < kept.value < kept.interval[1]
    write_workdir(tmp_path / 'few', sizes=(4,), loss='sigmoid', examples=50)
    few = estimates(reading.read_run(tmp_path / 'few', ''), 'test')[name]
    assert few.interval[0] < few.value < few.interval[1]


# Words and markup.


def test_text_is_escaped_and_markup_is_not():
    inner = markup.tag('b', NASTY)
    assert inner.markup == '<b>&lt;script&gt;alert(&quot;x&quot;)&lt;/script&gt; &amp; &#x27;quoted&#x27;</b>'
    assert markup.tag('p', inner, title='"><script>').markup == (
        f'<p title="&quot;&gt;&lt;script&gt;">{inner.markup}</p>'
    )
    assert markup.text('a\x00b\ud800c\nd') == 'a\ufffdb\ufffdc\nd'
    assert markup.tag('img', alt='', hidden=True, width=None, data_value=3).markup == (
        '<img alt="" hidden data-value="3">'
    )


def test_numbers_in_words():
    assert wording.percent(0.98437) == '98.4\xa0%'
    assert wording.interval('noun_top_1', (0.9, 1.0), ('noun',)) == '90.0 – 100.0\xa0%'
    assert wording.interval('auc', (0.9, 1.0)) == '0.900 – 1.000'
    assert wording.metric('noun_top_1', ('noun',)) == 'noun: top-1 accuracy'
    assert wording.metric('action_top_5') == 'action: top-5 accuracy'
    assert [wording.short(x) for x in (0.00372, 1.5, 12345.6, 8.2e-9, 3, float('nan'))] == [
        '0.00372', '1.5', '12,346', '8.20×10⁻⁹', '3', 'nan',
    ]  # fmt: skip
    assert [wording.seconds(x) for x in (4.25, 59.6, 200, 18_420, 90_000)] == [
        '4.2 s', '1 min 00 s', '3 min 20 s', '5 h 07 min', '1 d 1 h 00 min',
    ]  # fmt: skip
    assert [wording.large(x) for x in (12, 143_000, 88.9e6, 7.912e15)] == ['12', '143 k', '88.9 M', '7.91 P']
    assert wording.moment('2026-01-31T13:05:00+01:00') == '31 January 2026, 12:05 UTC'
    assert wording.moment('yesterday') == 'yesterday'


# Charts.


def path_of(chart, name):
    drawn = re.search(rf'<g id="{name}">\s*<path d="([^"]*)"', chart.markup)
    return np.array([[float(x), float(y)] for x, y in re.findall(r'[ML] (\S+) (\S+)', drawn[1])])


def test_a_chart_shows_the_numbers_it_is_given():
    points = tuple((float(step), 5.0 / step) for step in range(10, 400, 10))
    for scale, transform in (('linear', np.array), ('logarithmic', np.log)):
        chart = charts.lines([charts.Line('train', points, 0)], title='Loss', scale=scale)
        drawn = path_of(chart, 'line-0')
        for axis, values in ((0, np.array(points)[:, 0]), (1, transform(np.array(points)[:, 1]))):
            slope, start = np.polyfit(values, drawn[:, axis], 1)
            np.testing.assert_allclose(drawn[:, axis], slope * values + start, atol=2e-3)
            assert (slope > 0) == (axis == 0)  # y grows downwards


def test_around_a_single_step_there_are_no_broken_ones():
    chart = charts.lines([charts.Line('train', ((10.0, 0.5),), 0)], title='Loss')
    told = re.findall(r'>([^<>\s]+)</text>', chart.markup)
    assert told[0] == '10'
    assert told[1] == 'step'


def test_a_reliability_diagram_shows_its_bins():
    bins = [numbers.Bin(10, 0.3, 0.2), numbers.Bin(90, 0.9, 0.8)]
    chart = charts.reliability(bins, title='')
    diagonal = path_of(chart, 'diagonal')  # from (0, 0) to (1, 1)
    group = chart.markup[chart.markup.index('id="bins"') :]
    dots = [[float(x), float(y)] for x, y in re.findall(r'<use [^>]*x="([\d.]+)" y="([\d.]+)"', group)[:2]]
    expected = [diagonal[0] + (diagonal[1] - diagonal[0]) * [part.confidence, part.accuracy] for part in bins]
    np.testing.assert_allclose(dots, expected, atol=1e-3)


def test_charts_are_the_same_each_time_and_have_the_colours_of_the_page():
    def draw():
        return charts.lines([charts.Line('a', ((1.0, 2.0), (2.0, 3.0)), 7, marked=True)], title=NASTY).markup

    assert draw() == draw()
    assert 'var(--series-1)' in draw()
    assert not re.search('#[0-9a-f]{6}', draw())
    assert markup.text(NASTY) in draw()


def test_long_lines_are_thinned_by_means_and_gaps_left_out():
    points = tuple((float(step), float(step % 2)) for step in range(1000))
    thin = charts.thinned(charts.Line('', points, 0))
    assert len(thin.points) == 250
    assert set(thin.points[1]) == {5.5, 0.5}
    chart = charts.lines([charts.Line('', ((1.0, 1.0), (2.0, float('nan')), (3.0, 2.0)), 0)], title='')
    assert len(path_of(chart, 'line-0')) == 2


# Clips.


def example(index, label, **probabilities):
    names = sorted(probabilities, key=lambda name: -probabilities[name])
    decision = Decision((label,), tuple(names), tuple(probabilities[name] for name in names))
    return Example(index, f'clip {index}', (decision,))


def test_clips_are_chosen_by_confidence_and_by_the_probability_of_the_label():
    examples = [
        example(0, 'a', a=0.99, b=0.01),
        example(1, 'a', a=0.98, b=0.02),
        example(2, 'b', b=0.9, a=0.1),
        example(3, 'b', a=0.95, b=0.05),
        example(4, 'a', b=0.6, a=0.4),
        example(5, 'a', a=0.55, b=0.45),
    ]
    chosen = {each.title: [one.index for one in each.examples] for each in clips.choose(examples, each=1)}
    assert chosen == {'Most confidently wrong': [3], 'Hardest': [4], 'Easiest': [0]}
    several = clips.choose(examples, each=2)
    assert [[one.index for one in each.examples] for each in several] == [[3, 4], [5, 2], [0]]


def test_the_probability_of_a_label_behind_the_first_five_is_a_bound():
    decision = Decision(('z',), ('a', 'b', 'c', 'd', 'e'), (0.5, 0.2, 0.1, 0.1, 0.08))
    assert clips.of_label(Example(0, '', (decision,))) == pytest.approx(0.02)
    pair = Example(
        0, '', (Decision(('a',), ('a', 'b'), (0.5, 0.5)), Decision(('d',), ('c', 'd'), (0.8, 0.2)))
    )
    assert clips.of_label(pair) == pytest.approx(0.1)
    assert clips.confidence(pair) == pytest.approx(0.4)
    assert not clips.right(pair)
    none = Example(0, '', (Decision((), ('a', 'b'), (0.3, 0.1)),))
    assert clips.of_label(none) == pytest.approx(0.7)


# Pages.

ALWAYS = ['Results', 'Training', 'Bad files', 'Settings', 'Command and machine']
OF_CLASSES = ['Classes on test', 'Confidence on test']
CASES = {
    'one head': {},
    'several heads': {'sizes': (3, 7), 'heads': ('noun', 'verb')},
    'several labels': {'sizes': (6,), 'loss': 'sigmoid'},
    '400 classes': {'sizes': (400,), 'examples': 2000},
    'two classes': {'sizes': (2,)},
}


@pytest.mark.parametrize('case', CASES)
def test_all_sections_are_there(tmp_path, case):
    write_workdir(tmp_path / 'run', **CASES[case])
    page = written(tmp_path / 'run')
    confusions = [] if case == 'several labels' else ['Confusions on test']
    assert page.titles == [*ALWAYS[:2], *confusions, *OF_CLASSES, *ALWAYS[2:]]
    anchors = [attributes['href'][1:] for name, attributes in page.elements if name == 'a']
    ids = [attributes['id'] for _, attributes in page.elements if attributes.get('id')]
    assert set(anchors) <= set(ids)
    assert len(anchors) == len(page.titles)
    assert len(ids) == len(set(ids))
    assert not [attributes for _, attributes in page.elements if 'style' in attributes]
    assert (tmp_path / 'run' / 'report.html').stat().st_size < 1e6


def test_the_metrics_and_the_classes_are_those_of_the_evaluation(tmp_path):
    write_workdir(tmp_path / 'run')
    found = json.loads((tmp_path / 'run' / 'eval.json').read_text())['test']
    page = written(tmp_path / 'run')
    rows = {row[0]: row[1] for row in page.table(['', 'test'])[1:]}
    low, high = numbers.wilson(found['top_1'], 60)
    assert rows['Top-1 accuracy'] == f'{found["top_1"]:.1%}{low:.1%} – {high:.1%}'.replace(
        '%', '\xa0%'
    ).replace('\xa0% –', ' –')
    assert rows['Loss'] == '0.5'
    assert rows['Examples'] == '60'
    assert rows['Views of each (time × space)'] == '4 × 3'
    assert f'{found["top_1"]:.1%}'.replace('%', ' %') in page.text
    for name, *cells in page.table(['class', 'examples'])[1:]:
        values = found['per_class'][name]
        assert cells[0] == str(values['examples'])
        assert cells[1] == f'{values["accuracy"]:.1%}'.replace('%', '\xa0%')
        assert cells[3:5] == [f'{values["precision"]:.3f}', f'{values["jaccard"]:.3f}']
        assert cells[5] == str(values['predicted'])


def test_another_type_than_that_of_the_training_is_told(tmp_path):
    found = {}
    for dtype in ('float32', 'bfloat16'):
        write_workdir(tmp_path / dtype)
        file = tmp_path / dtype / 'eval.json'
        results = json.loads(file.read_text())
        results['test']['dtype'] = dtype
        file.write_text(json.dumps(results))
        rows = [row[:2] for row in written(tmp_path / dtype).table(['', 'test'])]
        found[dtype] = [row for row in rows if row[0] == 'Computed in']
    assert found == {'float32': [], 'bfloat16': [['Computed in', 'bfloat16']]}


def test_the_confusion_matrix_is_that_of_the_file(tmp_path):
    write_workdir(tmp_path / 'run')
    confusion = reading.read_run(tmp_path / 'run', '').confusions['test']['']
    table = written(tmp_path / 'run').table(['class', 'label 0', 'label 1'])
    counts = [[0 if cell == '·' else int(cell) for cell in row[1:-1]] for row in table[1:]]
    assert np.array_equal(counts, confusion.counts)
    assert [int(row[-1]) for row in table[1:]] == confusion.counts.sum(axis=1).tolist()


def test_the_most_frequent_confusions_come_first():
    counts = np.array([[5, 2, 0], [7, 1, 0], [0, 2, 8]])
    assert classes.most_confused(Confusion(('a', 'b', 'c'), counts)) == [
        ('b', 'a', 7, 7 / 8),
        ('a', 'b', 2, 2 / 7),
        ('c', 'b', 2, 2 / 10),
    ]


def test_the_numbers_behind_the_curves_are_those_of_the_file(tmp_path):
    write_workdir(tmp_path / 'run')
    rows = write_curves(tmp_path / 'run', 'top_1')
    page = written(tmp_path / 'run')
    for split, columns in (
        ('train', ['step', 'loss', 'grad norm']),
        ('validation', ['step', 'loss', 'top 1']),
    ):
        mine = [row for row in rows if row['split'] == split]
        table = page.table(columns)
        assert [row[0] for row in table[1:]] == [str(row['step']) for row in mine]
        assert [row[1] for row in table[1:]] == [wording.short(row['loss']) for row in mine]
    run = reading.read_run(tmp_path / 'run', '')
    train, validation = training.curves([run], 'loss')
    assert train.points == tuple((row['step'], row['loss']) for row in rows if row['split'] == 'train')
    assert validation.points == tuple(
        (row['step'], row['loss']) for row in rows if row['split'] == 'validation'
    )


def test_settings_that_are_not_the_default_are_told(tmp_path):
    write_workdir(tmp_path / 'run', model__width=96, optimizer__learning_rate=0.25)
    table = written(tmp_path / 'run').table(['key', 'default', 'here'])
    rows = {row[0]: row[1:] for row in table[1:]}
    assert rows['model.width'] == ['768', '96']
    assert rows['optimizer.learning_rate'] == ['0.1', '0.25']
    assert rows['data.test_splits'] == ['validation', 'test']
    assert set(rows) == {
        'name', 'model.width', 'optimizer.learning_rate', 'data.num_classes', 'data.test_splits', 'training.steps',
    }  # fmt: skip


def test_what_was_run_is_told(tmp_path):
    write_workdir(tmp_path / 'run')
    text = written(tmp_path / 'run').text
    for told in (
        '8 × NVIDIA H100 (gpu)', 'commit abcdef012345', 'with changes that are not committed', '905 clips a second',
        '19.5 % of the devices’ 7.91 PFLOP/s (published: H100 SXM bf16)', '3.0 GiB (device)', '2 h 00 min',
        '31 January 2026, 12:03 UTC', 'stopped', '88.9 M', 'waiting for data 2.1 % of the time',
    ):  # fmt: skip
        assert told in text, told


def test_nothing_from_outside_is_taken_for_markup(tmp_path):
    folder = tmp_path / '<b>run'
    names = [f'{NASTY}{number}' for number in range(60)]
    write_workdir(folder, names=names, classes=[f'{NASTY}{k}' for k in range(4)], data__dataset=NASTY)
    with (folder / 'bad_files.csv').open('w') as file:
        file.write(
            'split,name,cause,found\n"test","<img src=x onerror=alert(1)>","</td><script>","at the start"\n'
        )
    account = {'summary': NASTY, 'notes': [NASTY], 'parameters': {NASTY: {'action': NASTY}}, 'unused': {}}
    (folder / 'conversion.json').write_text(json.dumps(account))
    shutil.copytree(folder, tmp_path / 'other')
    for page in (written(folder), written(folder, tmp_path / 'other', output=tmp_path / 'two.html')):
        assert [name for name, _ in page.elements].count('script') == 1
        assert not [
            attributes for _, attributes in page.elements if any(key.startswith('on') for key in attributes)
        ]
        assert not {'b><b', 'onerror'} & {name for name, _ in page.elements}
        assert ' '.join(NASTY.split()) in page.text
        assert '<img src=x onerror=alert(1)>' in page.text
        assert [row[0] for row in page.table(['class', 'examples'])[1:]] == [f'{NASTY}{k}' for k in range(4)]


def test_the_page_may_load_nothing_and_run_only_its_own_script(tmp_path):
    write_workdir(tmp_path / 'run')
    text = report.write(tmp_path / 'run', clips=False).read_text()
    (policy,) = re.findall('Content-Security-Policy" content="([^"]*)"', text)
    rules = dict(rule.strip().split(' ', 1) for rule in html.unescape(policy).split(';'))
    assert rules['default-src'] == "'none'"
    for rule, element in (('script-src', 'script'), ('style-src', 'style')):
        (content,) = re.findall(f'<{element}>(.*?)</{element}>', text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert rules[rule] == f"'sha256-{digest}'"
    addresses = set(re.findall(r"""(?:src|href|url)[=(]["']?([^"')> ]+)""", text))
    assert all(address.startswith(('#', 'data:image/')) for address in addresses)
    assert 'http' not in re.sub('http-equiv', '', text)


def test_the_same_run_gives_the_same_bytes(tmp_path):
    write_workdir(tmp_path / 'run')
    before = report.write(tmp_path / 'run', clips=False).read_bytes()
    script = 'import sys; from vivit_jax.report.__main__ import main; sys.exit(main(sys.argv[1:]))'
    command = [sys.executable, '-c', script, str(tmp_path / 'run'), '--no-clips']
    subprocess.run(
        command, check=True, capture_output=True, env={'PYTHONHASHSEED': '7', 'JAX_PLATFORMS': 'cpu'}
    )
    assert (tmp_path / 'run' / 'report.html').read_bytes() == before


def test_what_is_missing_is_said(tmp_path):
    folder = tmp_path / 'run'
    write_workdir(folder, facts=False)
    page = written(folder, clips=True)
    assert 'run.json is not there' in page.text
    assert page.text.count('Not shown:') == 2  # neither data nor checkpoint
    assert 'there is no checkpoint' in page.text
    for name in ('eval.json', 'predictions.csv', 'confusion_test.csv'):
        (folder / name).unlink()
    page = written(folder, clips=True)
    assert page.titles == ALWAYS
    assert 'Not evaluated yet' in page.text
    (folder / 'metrics.jsonl').unlink()
    page = written(folder)
    assert 'Nothing has been logged yet' in page.text
    assert 'No result yet' in page.text


def test_a_run_under_way_has_a_report(tmp_path):
    folder = tmp_path / 'run'
    write_workdir(folder, facts=False)
    (folder / 'eval.json').unlink()
    rows = write_curves(folder, 'top_1', steps=150)
    with (folder / 'metrics.jsonl').open('a') as file:
        file.write('{"step": 160, "split": "trai')  # being written
    page = written(folder)
    assert 'not finished, step 150 of 200' in page.text
    last = [row for row in rows if row['split'] == 'validation'][-1]
    assert f'{last["top_1"]:.1%}'.replace('%', ' %') in page.text
    assert 'on validation at step 150, so far' in page.text
    assert 'cannot be read' not in page.text


def test_what_is_damaged_is_said_and_the_rest_shown(tmp_path):
    folder = tmp_path / 'run'
    write_workdir(folder)
    (folder / 'run.json').write_text('{')
    (folder / 'confusion_test.csv').write_text('label,a,b\na,1\n')
    (folder / 'conversion.json').write_text('[]')
    with (folder / 'metrics.jsonl').open('a') as file:
        file.write('nonsense\n{"step": 3}\n')
    with (folder / 'predictions.csv').open('a') as file:
        file.write('test,60,x,a,a|b|c,0.5|0.5\n')
    page = written(folder)
    assert page.titles[-1] == 'What could not be read'
    for told in (
        'run.json cannot be read',
        'confusion_test.csv cannot be read',
        'conversion.json cannot be read',
    ):
        assert told in page.text
    assert 'metrics.jsonl: 2 of 26 lines cannot be read' in page.text
    assert 'predictions.csv: 1 rows cannot be told apart' in page.text
    assert 'Confidence on test' in page.titles


def test_several_runs_side_by_side(tmp_path):
    write_workdir(tmp_path / 'a' / 'run', seed=0)
    write_workdir(tmp_path / 'b' / 'run', seed=1, model__width=96, facts=False)
    write_workdir(tmp_path / 'c' / 'third', seed=2, model__width=96)
    (tmp_path / 'c' / 'third' / 'eval.json').unlink()
    folders = [tmp_path / 'a' / 'run', tmp_path / 'b' / 'run', tmp_path / 'c' / 'third']
    page = written(*folders, output=tmp_path / 'three.html')
    assert '3 runs side by side' in page.text
    labels = [str(folders[0]), str(folders[1]), 'third']
    rows = page.table(['run', 'result'])[1:]
    assert sorted(row[0] for row in rows) == sorted(labels)
    values = [float(re.match(r'[\d.]+', row[1])[0]) for row in rows]
    assert values == sorted(values, reverse=True)
    differing = next(table for table in page.tables if table[0][:2] == ['key', 'default'])
    assert differing[0][2:] == labels
    assert ['model.width', '768', '768', '96', '96'] in differing
    assert page.table(['class', 'examples'])[0][2:] == [f'accuracy, {label}' for label in labels[:2]]
    lines = training.curves(reading.read_runs(folders), 'loss')
    assert [(line.series, line.marked) for line in lines] == [
        (k, marked) for k in range(3) for marked in (False, True)
    ]


def test_bad_files_and_starting_weights_are_told(tmp_path):
    folder = tmp_path / 'run'
    write_workdir(folder)
    (folder / 'bad_files.csv').write_text('split,name,cause,found\ntrain,clip 3,no frames,at the start\n')
    (folder / 'bad_files_1.csv').write_text('split,name,cause,found\ntrain,clip 4,cut off,while training\n')
    change = {'action': 'copied', 'shape': [3], 'arrays': {}, 'note': ''}
    account = {
        'path': 'weights.npz', 'kind': 'vit_npz', 'summary': 'vit_npz weights.npz: of 3 parameter arrays 2 copied',
        'notes': ['resized'], 'parameters': {'cls': change, 'pos': change, 'head': {**change, 'action': 'fresh'}},
        'unused': {'pre_logits': {'shape': [3], 'reason': 'no use for it'}},
    }  # fmt: skip
    (folder / 'conversion.json').write_text(json.dumps(account))
    page = written(folder)
    assert page.table(['example', 'split'])[1:] == [
        ['clip 3', 'train', 'no frames', 'at the start'],
        ['clip 4', 'train', 'cut off', 'while training'],
    ]
    assert 'Starting weights' in page.titles
    assert page.table(['what was done'])[1:] == [['copied', '2', '', 'cls, pos'], ['fresh', '1', '', 'head']]
    assert page.table(['why', 'arrays'])[1:] == [['no use for it', '1', 'pre_logits']]


def digits(folder, examples=12):
    """A workdir on moving digits, whose clips are made on the spot."""
    values = {
        'data__source': 'moving_digits', 'data__frames': 16, 'data__stride': 1, 'data__short_side': 0,
        'data__crop': (32, 32), 'data__channels': 1, 'model__width': 16, 'model__mlp_dim': 16,
        'model__num_heads': 2, 'model__num_layers': 1, 'model__temporal_layers': 1, 'model__tubelet': (4, 8, 8),
        'model__kernel_init': 'random',
    }  # fmt: skip
    names = [f'test/{number:06d}' for number in range(examples)]
    write_workdir(folder, sizes=(8,), examples=examples, names=names, **values)
    config = config_module.load(str(folder / 'config.json'))
    return config, experiment.open_source(config, 'test')


def chosen(folder):
    """How many clips a report shows."""
    examples = reading.read_run(folder, '').examples['test']
    return sum(len(each.examples) for each in clips.choose(examples))


def pictures(page):
    return [attributes for name, attributes in page.elements if name == 'img']


def test_clips_are_shown_as_they_are(tmp_path):
    _, source = digits(tmp_path / 'run')
    page = written(tmp_path / 'run', clips=True)
    assert 'Not shown: there is no checkpoint' in page.text
    assert page.text.count('Not shown') == 1, page.text[page.text.index('Not shown') :]
    shown = pictures(page)
    assert len(shown) == chosen(tmp_path / 'run') * clips.FRAMES
    assert all(each['src'].startswith('data:image/jpeg;base64,') for each in shown)
    again = written(tmp_path / 'run', clips=True, sources={'test': source})
    assert pictures(again) == shown
    assert not pictures(written(tmp_path / 'run'))


def test_clips_of_other_data_are_not_shown(tmp_path):
    _, source = digits(tmp_path / 'run', examples=12)
    names = (tmp_path / 'run' / 'predictions.csv').read_text().replace('test/0000', 'elsewhere/')
    (tmp_path / 'run' / 'predictions.csv').write_text(names)
    page = written(tmp_path / 'run', clips=True, sources={'test': source})
    assert not pictures(page)
    assert page.text.count('No picture: the data is not what it was at the evaluation') == chosen(
        tmp_path / 'run'
    )


def test_attention_is_shown_over_clips(tmp_path):
    config, source = digits(tmp_path / 'run')
    model = experiment.make_model(config)
    params = model.init(jax.random.key(0), jnp.zeros((1, *experiment.clip_shape(config))))['params']
    predictor = inference.Predictor(
        config, params, tuple(source.class_names), sharding.make_mesh(1), tmp_path / 'run', None
    )
    page = written(tmp_path / 'run', clips=True, predictor=predictor, sources={'test': source})
    assert 'Not shown' not in page.text, page.text[page.text.index('Not shown') :]
    shown = [
        each for each in pictures(page) if each['alt'] == 'The same in grey with attention laid over them'
    ]
    assert len(shown) == 3  # one of each kind
    assert len(pictures(page)) == (chosen(tmp_path / 'run') + 2 * 3) * clips.FRAMES


def test_the_command(tmp_path, capsys, monkeypatch):
    write_workdir(tmp_path / 'one')
    write_workdir(tmp_path / 'two', seed=1)
    monkeypatch.chdir(tmp_path)
    assert main(['one', '--no-clips']) == 0
    assert capsys.readouterr().out == 'written to one/report.html\n'
    assert main(['one', 'two', '--no-clips']) == 0
    assert capsys.readouterr().out == 'written to comparison.html\n'
    assert main(['one', '--no-clips', '--output=elsewhere.html']) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        'comparison.html',
        'elsewhere.html',
        'one',
        'two',
    ]


@pytest.mark.parametrize(
    ('arguments', 'told'),
    [
        (['nowhere'], 'nowhere is no workdir: there is no such folder'),
        (['.'], '. is no workdir: it has no config.json'),
        (['run/config.json'], 'run/config.json is no workdir: it is a file'),
        (['run', 'run/'], 'run is given twice'),
        (
            ['run', '--output=nowhere/report.html'],
            "nowhere/report.html cannot be written: no folder 'nowhere'",
        ),
        (['broken'], 'broken/config.json: is no JSON'),
    ],
)
def test_mistakes_are_told_in_a_line(tmp_path, capsys, monkeypatch, arguments, told):
    write_workdir(tmp_path / 'run')
    (tmp_path / 'broken').mkdir()
    (tmp_path / 'broken' / 'config.json').write_text('{')
    monkeypatch.chdir(tmp_path)
    assert main([*arguments, '--no-clips']) == 2
    error = capsys.readouterr().err
    assert error.startswith(f'error: {told}')
    assert error.count('\n') == 1


def test_a_warning_is_one_line(monkeypatch, tmp_path):
    monkeypatch.setattr(warnings, 'formatwarning', lambda *_, **__: 'file.py:1: UserWarning: …')
    assert main([str(tmp_path)]) == 2
    assert warnings.formatwarning('no checksums', UserWarning, 'file.py', 1) == 'warning: no checksums\n'
