"""The table of MedMNIST 3D: runs beside the official results, as Markdown and as a picture."""

import json
import re
import statistics

import cv2
import pytest
from conftest import load_tool

tool = load_tool('medmnist_table')

# The official table as published, read column by column: AUC and accuracy of the set's eight methods.
ADRENAL = [
    '.718/.772',
    '.827/.721',
    '.839/.754',
    '.732/.763',
    '.828/.745',
    '.828/.758',
    '.828/.802',
    '.804/.705',
]
FRACTURE = [
    '.587/.451',
    '.712/.508',
    '.714/.497',
    '.552/.397',
    '.725/.494',
    '.750/.517',
    '.628/.453',
    '.642/.458',
]


def write_run(folder, name='adrenal', size=28, seed=0, test=None, experiment='medmnist3d', width=64):
    """Writes what a run leaves; without `test` it is not finished."""
    folder.mkdir(parents=True)
    suffix = f'_{name}' + ('' if size == 28 else f'_{size}')
    config = {
        'name': experiment + (suffix if experiment == 'medmnist3d' else ''),
        'seed': seed,
        'model': {'width': width},
        'data': {'source': 'medmnist', 'root': str(folder), 'medmnist': {'name': name, 'size': size}},
    }
    (folder / 'config.json').write_text(json.dumps(config))
    if test is not None:
        auc, accuracy = test
        values = {'auc': auc, 'accuracy': accuracy, 'majority_accuracy': 0.7684, 'count': 298}
        (folder / 'eval.json').write_text(json.dumps({'test': values}))
    return str(folder)


def run(capsys, output, *folders):
    assert tool.main([*folders, f'--output={output}']) == 0
    return capsys.readouterr()


def told(capsys, output, *folders):
    capsys.readouterr()
    assert tool.main([*folders, f'--output={output}']) == 2
    assert not output.exists()
    *_, message = capsys.readouterr().err.splitlines()
    assert message.startswith('error: ')
    return message


def cells(text, start):
    (line,) = (line for line in text.splitlines() if line.startswith(f'| {start} |'))
    return [cell.strip() for cell in line.split('|')[2:-1]]


@pytest.mark.parametrize(('name', 'expected'), [('adrenal', ADRENAL), ('fracture', FRACTURE)])
def test_the_official_rows(name, expected):
    rows = tool.official()
    assert [f'{row[name].auc:.3f}/{row[name].accuracy:.3f}'.replace('0.', '.') for row in rows.values()] == (
        expected
    )
    assert [len(row) for row in rows.values()] == [6] * 8


def test_seeds_become_mean_and_deviation(tmp_path, capsys):
    aucs, accuracies = (0.85, 0.86, 0.9), (0.8, 0.81, 0.79)
    folders = [
        write_run(tmp_path / f'adrenal_{seed}', seed=seed, test=pair)
        for seed, pair in enumerate(zip(aucs, accuracies, strict=True))
    ]
    fracture = write_run(tmp_path / 'fracture', 'fracture', test=(0.7, 0.5))
    output = tmp_path / 'out'
    captured = run(capsys, output, *folders, fracture)
    text = (output / 'medmnist.md').read_text()
    assert text in captured.out
    assert not captured.err
    # Organ, nodule, fracture, adrenal, vessel, synapse.
    mean = f'**.870 ± {statistics.stdev(aucs):.3f}** / .800 ± .010 (3 seeds)'.replace('0.', '.')
    assert cells(text, 'ViViT, medmnist3d') == ['–', '–', '.700 / .500 (1 seed)', mean, '–', '–']
    assert cells(text, 'ResNet-50 + ACS') == [
        '.994 / .889',
        '.886 / .841',
        '**.750** / .517',
        '.828 / .758',
        '.912 / .858',
        '.719 / .709',
    ]
    assert cells(text, 'majority class') == ['–', '–', '– / .768', '– / .768', '– / .887', '–']
    # The best of each set is bold, and nothing else is.
    assert len(re.findall(r'\*\*', text)) == 2 * 6
    assert '\n\n' not in text


def test_what_prints_alike_is_best_alike(tmp_path, capsys):
    run(capsys, tmp_path / 'out', write_run(tmp_path / 'run', test=(0.8391, 0.8)))
    text = (tmp_path / 'out' / 'medmnist.md').read_text()
    assert cells(text, 'ViViT, medmnist3d')[3] == '**.839** / .800 (1 seed)'
    assert cells(text, 'ResNet-18 + ACS')[3] == '**.839** / .754'


def test_another_size_has_a_table_of_its_own(tmp_path, capsys):
    small = write_run(tmp_path / 'small', test=(0.85, 0.8))
    large = write_run(tmp_path / 'large', size=64, test=(0.87, 0.81))
    published = write_run(
        tmp_path / 'published', 'fracture', test=(0.6, 0.45), experiment='organmnist3d_published'
    )
    run(capsys, tmp_path / 'out', small, large, published)
    at_28, at_64 = (tmp_path / 'out' / 'medmnist.md').read_text().split('\n\n')
    assert cells(at_28, 'ViViT, medmnist3d')[3] == '**.850** / .800 (1 seed)'
    assert cells(at_28, 'ViViT, organmnist3d_published')[2:4] == ['.600 / .450 (1 seed)', '–']
    assert cells(at_64, 'ViViT, medmnist3d')[3] == '**.870** / .810 (1 seed)'
    assert 'AUC / accuracy at 64' in at_64
    assert 'ResNet' not in at_64


def test_the_picture(tmp_path, capsys):
    """A panel more makes it higher; only runs are drawn in their colour."""
    adrenal = write_run(tmp_path / 'a', test=(0.85, 0.8))
    fracture = write_run(tmp_path / 'f', 'fracture', test=(0.7, 0.5))
    heights = []
    for folders in ([adrenal], [adrenal, fracture]):
        output = tmp_path / f'out{len(folders)}'
        run(capsys, output, *folders)
        picture = cv2.imread(str(output / 'medmnist.png'))
        heights.append(picture.shape[0])
        red, green, blue = (int(tool.OURS[start : start + 2], 16) for start in (1, 3, 5))
        ours = (picture == (blue, green, red)).all(axis=2)
        # Two bars of each run, each at least 15 pixels high.
        rows = ours.sum(axis=1) > 200
        assert 15 * len(folders) < rows.sum() < 50 * len(folders)
    assert heights[1] > 1.7 * heights[0]


def test_an_unfinished_run_is_named_and_left_out(tmp_path, capsys):
    done, not_done = write_run(tmp_path / 'done', test=(0.85, 0.8)), write_run(tmp_path / 'not_done', seed=1)
    captured = run(capsys, tmp_path / 'out', done, not_done)
    assert captured.err == f'{not_done}: not finished, it has no eval.json; left out\n'
    assert '(1 seed)' in captured.out
    assert told(capsys, tmp_path / 'none', not_done) == 'error: none of these runs is finished'


def test_what_cannot_be_compared(tmp_path, capsys):
    first = write_run(tmp_path / 'first', test=(0.85, 0.8))
    output = tmp_path / 'out'
    message = told(capsys, output, first, write_run(tmp_path / 'same', test=(0.8, 0.8)))
    assert message == f'error: {first} and {tmp_path}/same have the same seed, 0: give one of them'
    wide = write_run(tmp_path / 'wide', seed=1, width=96, test=(0.8, 0.8))
    message = told(capsys, output, first, wide)
    assert f'{first} and {wide} are of one experiment but differ in model.width (64 and 96)' in message
    message = told(capsys, output, str(tmp_path))
    assert message == f'error: {tmp_path} is no workdir: it has no config.json'
    evaluation, settings = tmp_path / 'first' / 'eval.json', tmp_path / 'first' / 'config.json'
    for content in (
        '{"test": {"top_1": 0.8}}',
        '{"test": {"auc": 0.8, "accuracy": 0.7}}',
        '{"validation": {}}',
    ):
        evaluation.write_text(content)
        message = told(capsys, output, first)
        assert message.startswith(f'error: {evaluation} has no AUC of the test split: evaluate again, with ')
        assert '--config.evaluation.report=medical' in message
    evaluation.write_text('{"test": ')
    message = told(capsys, output, first)
    assert message == f'error: {evaluation} is no JSON (Expecting value: line 1 column 10 (char 9))'
    settings.write_text(settings.read_text().replace('"medmnist", "root"', '"moving_digits", "root"'))
    message = told(capsys, output, first)
    assert message == f"error: {first} is a run on data.source='moving_digits', not on medmnist"
    settings.write_text('{"name": "mine", "seed": 0}')
    message = told(capsys, output, first)
    assert message == f"error: {settings} is no configuration of a run: 'data' is missing"
    settings.write_text('{"name": ')
    assert told(capsys, output, first).startswith(f'error: {settings} is no JSON (')
