import json

import pytest
from conftest import load_tool


@pytest.fixture(scope='module')
def tool():
    return load_tool('benchmark_scaling')


@pytest.fixture
def toy(tool):
    """The workload of --quick, with two clips."""
    options, _ = tool._parser().parse_known_args(['--batch=2'])
    for name, value in tool.TINY.items():
        setattr(options, name, value)
    return tool.of_options(options, {})


@pytest.mark.parametrize(
    ('over', 'size', 'clip', 'batch', 'layers', 'tokens'),
    [
        ('frames', 8, (8, 32, 32, 3), 2, 1, 17),
        ('tokens', (32, 224), (32, 224, 224, 3), 2, 1, 3137),
        ('tokens', (2, 224), (2, 224, 224, 3), 2, 1, 197),
        ('batch', 5, (4, 32, 32, 3), 5, 1, 9),
        ('layers', 3, (4, 32, 32, 3), 2, 3, 9),
        ('devices', 2, (4, 32, 32, 3), 2, 1, 9),
    ],
)
def test_one_size_changes_and_the_others_stay(tool, toy, over, size, clip, batch, layers, tokens):
    changed = tool.scaling.resized(toy, over, size)
    assert changed.clip == clip
    assert changed.batch == batch
    assert changed.model['num_layers'] == layers
    assert tool.scaling.tokens_of(changed) == tokens


def test_help_names_every_option(tool):
    text = ' '.join(tool._parser().format_help().split())
    assert 'as frames x pixels high and wide (2x224,8x224,32x224,128x224)' in text
    assert '(70% of what can be had)' in text


def test_what_is_measured_of_whom(tool, monkeypatch, run, tmp_path):
    """With times in place of measurements: half a second a layer, and the square of the frames for one of two."""

    class Child:
        def __init__(self, contender, workload, caches):
            self.name, self.workload = contender.name, workload

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def ask(self, do, **arguments):
            frames, layers = self.workload.clip[0], self.workload.model['num_layers']
            asked.append((self.name, do))
            if do == 'compile':
                return {'planned': {'total': 2**30 * frames if self.name == 'ours-plain' else 2**20 * layers}}
            return 0.5 * layers if self.name == 'ours' else frames**2

    asked = []
    monkeypatch.setattr(tool.scaling, 'Child', Child)
    text = run(
        *('--quick', '--over', 'frames', 'layers', '--over-frames=2,4,8', '--over-layers=1,2,4'),
        *(
            '--memory-limit=4.5',
            '--steps=3',
            f'--output={tmp_path / "s.json"}',
            f'--plot={tmp_path / "s.png"}',
        ),
    )
    rows = text.splitlines()
    assert '| frames | clip | contender | train step, s | planned memory |  |' in rows
    assert '| 2 | 2x32x32 | ours | 0.5 (0.5 to 0.5) | 1.0 MiB |  |' in rows
    assert '| 4 | 4x32x32 | ours-plain | 16 (16 to 16) | 4.0 GiB |  |' in rows
    assert '| 8 | 8x32x32 | ours-plain |  | 8.0 GiB | needs 8.0 GiB of 4.5 GiB |' in rows
    assert '| train step, s | ours-plain | frames^2.00 | 2 | 0% |' in rows
    assert '| train step, s | ours | layers^1.00 | 3 | 0% |' in rows
    assert '| planned memory, bytes | ours-plain | frames^1.00 | 3 | 0% |' in rows
    # Nothing of what does not fit is run.
    assert asked.count(('ours', 'train')) == 3 * 6
    assert asked.count(('ours-plain', 'train')) == 3 * 5
    report = json.loads((tmp_path / 's.json').read_text())
    assert [len(report['sweeps'][over]) for over in ('frames', 'layers')] == [6, 6]
    assert len(report['fits']) == 8
    assert report['settings']['steps'] == 3
    assert (tmp_path / 's.png').stat().st_size > 10_000


def test_devices_share_the_batch_and_with_fsdp_the_parameters(tool, toy):
    measure = tool.scaling.sharded.measure
    alone = measure(toy, 1, fsdp=False, steps=2)
    assert len(alone['seconds']) == 2
    both = measure(toy, 2, fsdp=False, steps=0)
    assert both['seconds'] == []
    # The state is whole on each; of two clips, a label and a mask each, a device has one.
    clip = 4 * 32 * 32 * 3 * 4 + 4 + 1
    assert alone['planned']['arguments'] - both['planned']['arguments'] == clip
    # Of the state, only the tubelets' kernel and its momentum are large enough to be shared.
    shared = measure(toy, 2, fsdp=True, steps=0)
    assert (
        both['planned']['arguments'] - shared['planned']['arguments'] == 2 * (2 * 16 * 16 * 3 * 16 * 4) // 2
    )


def test_devices_that_cannot_be_had(tool, toy):
    measure = tool.scaling.sharded.measure
    with pytest.raises(ValueError, match=r'^9 devices: there are 8 \(cpu\)$'):
        measure(toy, 9, fsdp=False, steps=1)
    with pytest.raises(ValueError, match=r'^4 devices: they do not divide a batch of 2$'):
        measure(toy, 4, fsdp=False, steps=1)


@pytest.mark.slow
def test_a_sweep_over_simulated_devices(run, tmp_path):
    run('--quick', '--over', 'devices', '--over-devices=3', '--steps=1', f'--output={tmp_path / "s.json"}')
    (row,) = json.loads((tmp_path / 's.json').read_text())['sweeps']['devices']
    assert row['why'] == ''
    assert row['seconds'] > 0
    assert row['planned_bytes'] > 0


@pytest.mark.parametrize(
    ('options', 'error'),
    [
        (['--over-tokens=2x224,32'], "argument --over-tokens: '2x224,32' must be clips of frames x pixels"),
        (['--over-frames=0'], "argument --over-frames: '0' must be a whole number of at least 1"),
        (['--over', 'depth'], "argument --over: invalid choice: 'depth'"),
        (['--over', 'frames', '--over-frames=4,3'], 'error: --over-frames: '),
        (['--over', 'devices', '--over-devices=1,3', '--batch=4'], 'do not divide a batch of 4 (--batch)'),
        (['--memory-limit=nan'], 'error: --memory-limit=nan: GiB, more than 0'),
        (['--plot=/nowhere/a.png'], 'error: --plot=/nowhere/a.png: /nowhere is not a folder'),
        (['--steps'], 'argument --steps: expected one argument'),
    ],
)
def test_nonsense_is_refused_in_one_line(refused, options, error):
    assert error in refused(*options)
