"""Workdirs of runs that never were: the files that a run leaves, with numbers drawn at random."""

import json

import numpy as np

from vivit_jax import config as config_module
from vivit_jax import metrics, results

NASTY = '<script>alert("x")</script> & \'quoted\''
FACTS = {
    'version': '0.1.0',
    'commit': 'abcdef0123456789',
    'dirty': True,
    'command': f'python -m vivit_jax.main --config.name={NASTY}',
    'started': '2026-01-31T10:00:00+00:00',
    'ended': '2026-01-31T12:03:00+00:00',
    'exit': 'done',
    'host': NASTY,
    'platform': 'Linux',
    'python': '3.11.9',
    'packages': {'jax': '0.10.2'},
    'devices': [{'kind': 'NVIDIA H100', 'platform': 'gpu', 'count': 8}],
    'processes': 1,
    'parameters': 88_900_000,
    'multiply_adds_per_clip': 284e9,
    'train_seconds': 7200.0,
    'compile_seconds': 65.0,
    'evaluate_seconds': 30.0,
    'clips_per_second': 905.0,
    'data_wait': 0.021,
    'peak_flops': 7.912e15,
    'peak_flops_source': 'published: H100 SXM bf16',
    'model_flops_per_second': 1.54e15,
    'mfu': 0.195,
    'peak_memory_bytes': 3 * 2**30,
    'peak_memory_kind': 'device',
    'sessions': [
        {
            'started': '2026-01-31T10:00:00+00:00',
            'ended': '2026-01-31T11:00:00+00:00',
            'first_step': 0,
            'last_step': 100,
            'exit': 'stopped',
            'command': NASTY,
            'host': 'one',
        },
        {
            'started': '2026-01-31T11:03:00+00:00',
            'ended': '2026-01-31T12:03:00+00:00',
            'first_step': 100,
            'last_step': 200,
            'exit': 'done',
            'command': NASTY,
            'host': 'two',
        },
    ],
}


class Names:
    """A source of which nothing but the names is there."""

    def __init__(self, class_names, names):
        self.class_names, self.digest, self.bad, self._names = class_names, '', (), names

    def __len__(self):
        return len(self._names)

    def __getitem__(self, index):
        return type('Named', (), {'name': self._names[index]})()


def settings(**values):
    """The default configuration with other values, `data__frames=8` for data.frames."""
    config = config_module.default_config()
    for key, value in values.items():
        config.update_from_flattened_dict({key.replace('__', '.'): value})
    return config


def write_curves(folder, main, steps=200, extra=()):
    """Writes `metrics.jsonl`: a line every 10 steps, a validation every 50; returns its rows."""
    random = np.random.default_rng(1)
    rows = []
    for step in range(10, steps + 1, 10):
        loss = float(3 * np.exp(-step / 40) + 0.01 * random.random())
        rows.append(
            {
                'step': step,
                'split': 'train',
                'loss': loss,
                'grad_norm': float(1 + random.random()),
                'learning_rate': 0.1 * (1 - step / steps),
                'epoch': step / 100,
                'clips_per_second': float(900 + random.random()),
                'data_wait': 0.02,
            }
        )
        if step % 50 == 0:
            values = {name: 1 - 0.5 * loss / 3 for name in (main, *extra)}
            rows.append({'step': step, 'split': 'validation', 'loss': loss, **values})
    (folder / 'metrics.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))
    return rows


def write_workdir(
    folder,
    *,
    sizes=(4,),
    heads=('label',),
    examples=60,
    loss='softmax',
    split='test',
    seed=0,
    facts=True,
    names=None,
    classes=None,
    **values,
):
    """Writes everything that a finished run leaves, but checkpoints; returns (scores, labels)."""
    folder.mkdir(parents=True, exist_ok=True)
    config = settings(
        name=folder.name,
        data__heads=heads,
        data__num_classes=sizes,
        data__test_splits=(split,),
        training__loss=loss,
        training__steps=200,
        **values,
    )
    (folder / 'config.json').write_text(json.dumps(config.to_dict()))
    random = np.random.default_rng(seed)
    scores = random.normal(size=(examples, sum(sizes))).astype(np.float32)
    labels = np.stack([random.integers(0, size, examples) for size in sizes], axis=1)
    for head, part in enumerate(results.slices(sizes)):
        scores[np.arange(examples), part.start + labels[:, head]] += 1.5
    if loss == 'sigmoid':
        labels = (random.random(scores.shape) < 0.3).astype(np.float32)
        scores = (3 * labels - 1.5 + random.normal(size=scores.shape)).astype(np.float32)
    elif len(sizes) == 1:
        labels = labels[:, 0]
    classes = classes or [f'{head} {k}' for head, size in zip(heads, sizes, strict=True) for k in range(size)]
    source = Names(classes, names or [f'clips/{number:04d}.mp4' for number in range(examples)])
    numbers = metrics.classification_metrics(
        scores, labels, loss_kind=loss, head_sizes=sizes, head_names=heads
    )
    outcome = results.Outcome(
        {**numbers, 'loss': 0.5, 'count': examples}, scores, labels, np.arange(examples)
    )
    by_class, confusions = results.by_class(outcome, source, sizes, heads, loss)
    report = {split: {**outcome.metrics, 'views': [4, 3], **by_class}}
    (folder / 'eval.json').write_text(json.dumps(report))
    for head, table in confusions.items():
        results.write_csv(folder / f'confusion_{split}{head}.csv', table[0], table[1:])
    rows = results.prediction_rows(split, source, outcome, sizes, loss)
    results.write_csv(folder / 'predictions.csv', results.PREDICTION_COLUMNS, rows)
    main = 'mean_average_precision' if loss == 'sigmoid' else 'action_top_1' if len(heads) > 1 else 'top_1'
    write_curves(folder, main, extra=[f'{head}_top_1' for head in heads] if len(heads) > 1 else ())
    if facts:
        (folder / 'run.json').write_text(json.dumps(FACTS))
    return scores, labels
