"""Which way does the digit move? Real handwritten digits on a torus, 16 frames of 32 x 32 pixels, 8 directions.

The data is inside the package and a single frame says nothing about the class: whoever does better than 1 in 8 has
seen motion. Two further splits show it: `test_shuffled` (the test clips with their frames in random order) and
`test_still` (one frame of each, repeated).

Expected: above 98 % on test, about chance (12.5 %) on test_still.
Hardware and time: two CPU cores, a few minutes.

    python -m vivit_jax.main --config=configs/moving_digits.py
    python -m vivit_jax.main --config=configs/moving_digits.py --config.model.attention=spatio_temporal
"""

from vivit_jax.config import default_config


def get_config():
    """Returns the config."""
    config = default_config()
    config.name = 'moving_digits'
    config.model.num_layers, config.model.temporal_layers = 2, 2
    config.model.num_heads = 4
    config.model.width, config.model.mlp_dim = 64, 128
    config.model.tubelet = (4, 4, 4)
    config.model.kernel_init = 'random'  # from scratch, every frame of a tubelet counts from the start
    config.model.classifier = 'gap'
    config.data.source = 'moving_digits'
    config.data.test_splits = ('test', 'test_shuffled', 'test_still')
    config.data.num_classes = (8,)
    config.data.frames, config.data.stride = 16, 1
    config.data.short_side, config.data.scale_jitter = 0, (1.0, 1.0)
    config.data.crop = (32, 32)
    config.data.channels = 1
    config.data.flip = 0.0  # would change the class
    config.data.colour_jitter, config.data.colour_drop = 0.0, 0.0
    config.training.epochs = 2.0
    config.training.batch_size = 32
    config.optimizer.name = 'adamw'
    config.optimizer.learning_rate = 3e-3
    config.optimizer.warmup_epochs = 0.1
    config.optimizer.weight_decay = 0.05
    config.evaluation.every_epochs = 0.5
    config.evaluation.batch_size = 128
    config.evaluation.temporal_views, config.evaluation.spatial_views = 1, 1
    config.checkpoint.best_metric = 'top_1'
    return config
