"""docs/scenic.md: every field that is translated stands there, beside the keys that it changes."""

import re

import pytest
from documentation import ROOT
from test_scenic_config import changed

from vivit_jax.config import differences
from vivit_jax.formats import scenic_config, scenic_fields

TEXT = (ROOT / 'docs' / 'scenic.md').read_text(encoding='utf-8')
AUGMENTATION = 'dataset_configs.augmentation_params.'


def rows(header):
    """The names in code in the first two columns of the table that begins with a header."""
    table = TEXT.partition(f'\n{header}\n')[2].partition('\n\n')[0]
    for line in table.splitlines()[1:]:
        theirs, ours, *_ = (re.findall(r'`([^`]+)`', cell) for cell in line.strip('| ').split(' |'))
        yield [name.replace('….', AUGMENTATION) for name in theirs], ours


FIELDS = {name: ours for theirs, ours in rows('| Scenic | here | |') for name in theirs}

SIZES = {'model.num_layers': 12, 'model.num_heads': 12, 'model.mlp_dim': 3072, 'model.classifier': 'gap'}
SPACETIME = {**SIZES, 'model.attention_config.type': 'spacetime'}
FSA = {**SIZES, 'model.attention_config.type': 'factorized_self_attention_block'}
RANDAUGMENT = {
    f'{AUGMENTATION}do_color_augment': False,
    f'{AUGMENTATION}rand_augment_num_layers': 2,
    f'{AUGMENTATION}rand_augment_magnitude': 15.0,
}
CLIPPING = {'max_grad_norm': None}

# Another value of every field, and what else has to be set for it to matter.
PROBES = {
    'experiment_name': 'other',
    'rng_seed': 3,
    'dataset_name': 'kinetics',
    'dataset_configs.num_frames': 16,
    'dataset_configs.stride': 3,
    'dataset_configs.min_resize': 300,
    'dataset_configs.crop_size': 240,
    'dataset_configs.num_classes': 5,
    'dataset_configs.class_splits': [300, 100],
    'dataset_configs.split_names': (['noun', 'verb'], {'dataset_configs.class_splits': [300, 100]}),
    'dataset_configs.test_split': 'test',
    'dataset_configs.prefetch_to_device': 5,
    'dataset_configs.num_test_clips': 10,
    'dataset_configs.do_three_spatial_crops': False,
    'dataset_configs.do_multicrop_test': False,
    'dataset_configs.zero_centering': False,
    f'{AUGMENTATION}do_jitter_scale': False,
    f'{AUGMENTATION}scale_min_factor': 0.5,
    f'{AUGMENTATION}scale_max_factor': 2.0,
    f'{AUGMENTATION}prob_scale_jitter': 0.0,
    f'{AUGMENTATION}do_color_augment': False,
    f'{AUGMENTATION}prob_color_augment': 0.3,
    f'{AUGMENTATION}prob_color_drop': 0.3,
    f'{AUGMENTATION}do_rand_augment': (True, RANDAUGMENT),
    f'{AUGMENTATION}do_randaugment': (True, RANDAUGMENT),
    f'{AUGMENTATION}do_random_augment': (True, RANDAUGMENT),
    f'{AUGMENTATION}rand_augment_num_layers': (3, {**RANDAUGMENT, f'{AUGMENTATION}do_rand_augment': True}),
    f'{AUGMENTATION}rand_augment_magnitude': (9, {**RANDAUGMENT, f'{AUGMENTATION}do_rand_augment': True}),
    f'{AUGMENTATION}mixup_alpha': 0.2,
    f'{AUGMENTATION}do_mixup': (False, {'mixup.alpha': 0.2}),
    'mixup.alpha': 0.2,
    'model.attention_config.type': ('spacetime', SIZES),
    'model_variant': ('space_time_vivit', {**SIZES, 'model.attention_config.type': None}),
    'model.attention_config.attention_order': 'time_space',
    'model.attention_config.spatial_only_baseline': True,
    'model.hidden_size': 384,
    'model.num_layers': (6, SPACETIME),
    'model.num_heads': (6, SPACETIME),
    'model.mlp_dim': (512, SPACETIME),
    'model.spatial_transformer.num_layers': 6,
    'model.spatial_transformer.num_heads': (6, {'model.temporal_transformer.num_heads': None}),
    'model.spatial_transformer.mlp_dim': (512, {'model.temporal_transformer.mlp_dim': None}),
    'model.temporal_transformer.num_layers': 6,
    'model.temporal_transformer.num_heads': (12, {'model.temporal_transformer.num_heads': None}),
    'model.temporal_transformer.mlp_dim': (3072, {'model.temporal_transformer.mlp_dim': None}),
    'model.patches.size': [14, 14, 5],
    'model.temporal_encoding_config.method': 'temporal_sampling',
    'model.temporal_encoding_config.n_sampled_frames': (
        8,
        {'model.temporal_encoding_config.method': 'temporal_sampling'},
    ),
    'model.temporal_encoding_config.kernel_init_method': 'average_arp_frame_initializer',
    'model.classifier': 'gap',
    'model.positional_embed': 'none',
    'model.positional_embedding': 'none',
    'model.normalise_output': False,
    'model.representation_size': 64,
    'model.dropout_rate': 0.3,
    'model.attention_dropout_rate': 0.3,
    'model.stochastic_droplayer_rate': 0.3,
    'model_dtype_str': 'bfloat16',
    'model_name': 'vivit_multilabel_classification',
    'label_smoothing': 0.3,
    'batch_size': 32,
    'eval_batch_size': 32,
    'log_summary_steps': 7,
    'log_eval_steps': 70,
    'checkpoint_steps': 7,
    'max_checkpoints_to_keep': 3,
    'multicrop_softmax_logits': True,
    'num_training_epochs': 7,
    'num_training_steps': 70,
    'lr_configs.steps_per_cycle': (70, {'num_training_epochs': None}),
    'optimizer': 'adam',
    'optimizer_configs.optimizer': 'adam',
    'optimizer_configs.momentum': 0.8,
    'optimizer_configs.b1': 0.8,
    'optimizer_configs.beta1': 0.8,
    'optimizer_configs.b2': 0.8,
    'optimizer_configs.beta2': 0.8,
    'optimizer_configs.eps': 0.1,
    'optimizer_configs.epsilon': 0.1,
    'optimizer_configs.nesterov': True,
    'max_grad_norm': 3,
    'grad_clip_configs.clip_value': (3, {**CLIPPING, 'grad_clip_configs.clip_method': 'clip_by_global_norm'}),
    'grad_clip_configs.clip_method': ('clip_by_global_norm', {**CLIPPING, 'grad_clip_configs.clip_value': 3}),
    'optimizer_configs.grad_clip.clip_value': (
        3,
        {**CLIPPING, 'optimizer_configs.grad_clip.clip_method': 'clip_by_global_norm'},
    ),
    'optimizer_configs.grad_clip.clip_method': (
        'clip_by_global_norm',
        {**CLIPPING, 'optimizer_configs.grad_clip.clip_value': 3},
    ),
    'explicit_weight_decay': 0.1,
    'l2_decay_factor': 0.1,
    'optimizer_configs.weight_decay': 0.1,
    'skip_scale_and_bias_regularization': (True, {'optimizer_configs.weight_decay': 0.1}),
    'optimizer_configs.skip_scale_and_bias_regularization': (True, {'optimizer_configs.weight_decay': 0.1}),
    'lr_configs.base_learning_rate': 3.0,
    'lr_configs.factors': 'constant',
    'lr_configs.learning_rate_schedule': 'piecewise',
    'lr_configs.warmup_steps': 7,
    'init_from.checkpoint_path': 'elsewhere',
    'init_from.restore_input_embedding': False,
    'init_from.restore_positional_embedding': False,
    'init_from.init_temporal_transformer': (False, FSA),
    'model.attention_config.attention_kernel_init_method': (
        'zero',
        {**FSA, 'init_from.init_temporal_transformer': False},
    ),
}


def translated(fields):
    config, _, _ = scenic_config.translate(
        changed(**{name.replace('.', '__'): value for name, value in fields.items()})
    )
    return config


@pytest.mark.parametrize('name', PROBES)
def test_a_field_changes_the_keys_beside_it(name):
    probe = PROBES[name]
    value, others = probe if isinstance(probe, tuple) else (probe, {})
    found = differences(translated(others), translated({**others, name: value}))
    assert set(found) == set(FIELDS[name])


def test_every_field_stands_in_the_table(monkeypatch):
    taken, take = set(), scenic_fields.Fields.take

    def noting(self, name, default=None):
        taken.add(name)
        return take(self, name, default)

    monkeypatch.setattr(scenic_fields.Fields, 'take', noting)
    for fields in ({}, SPACETIME, FSA):
        translated(fields)
    assert taken <= set(FIELDS)
    assert set(FIELDS) == set(PROBES)


def test_values_of_other_names():
    tables = ('ATTENTIONS', 'CLASSIFIERS', 'POSITIONS', 'KERNELS', 'LOSSES', 'OPTIMIZERS')
    expected = {
        theirs: [ours] if isinstance(ours, str) else list(ours)
        for table in tables
        for theirs, ours in getattr(scenic_config, table).items()
        if theirs not in (ours, '')
    }
    assert {name: ours for theirs, ours in rows('| Scenic | here |') for name in theirs} == expected
