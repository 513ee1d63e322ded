"""A run that takes seconds: moving digits with a model of hardly any size."""

import pathlib

DIGITS = str(pathlib.Path(__file__).parent.parent / 'configs' / 'moving_digits.py')

SETTINGS = {
    'model.width': '16',
    'model.mlp_dim': '16',
    'model.num_heads': '2',
    'model.num_layers': '1',
    'model.temporal_layers': '1',
    'model.tubelet': '4,8,8',
    'data.moving_digits.train_size': '60',
    'data.moving_digits.validation_size': '16',
    'data.moving_digits.test_size': '20',
    'training.batch_size': '8',
    'training.steps': '20',
    'training.log_every': '7',
    'evaluation.batch_size': '8',
    'evaluation.every_steps': '10',
    'optimizer.warmup_steps': '2',
}

# Of commands, for a few steps: good machine code takes longer to make than these last.
ENVIRONMENT = {'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': '--xla_backend_optimization_level=0'}


def options(settings):
    """Settings as options of the command line."""
    return [f'--config.{key}={value}' for key, value in settings.items()]
