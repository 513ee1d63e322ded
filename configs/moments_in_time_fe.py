"""Model 2, factorised encoder, on Moments in Time (paper, tables 6 and 8).

As on Kinetics-400 with 339 classes, 10 epochs and a learning rate of 0.25; 4 x 3 views.

Expected: 38.5 % top-1 for L/16x2 from an image ViT trained on ImageNet-21k.
Hardware and time: TPU pods in the paper, which gives no times; not measured here.
Data: Moments in Time (about 800,000 videos of 3 s), as ROOT/train/CLASS/*.mp4 and ROOT/validation/CLASS/*.mp4.

    python -m vivit_jax.main --config=configs/moments_in_time_fe.py --config.data.root=ROOT
"""

from vivit_jax.config import apply_size, default_config


def get_config(size='L/16x2'):
    """Returns the config of a size, as L/16x2 or B/16x4@64: SIZE/PATCHxTUBELET[@FRAMES]."""
    config = default_config()
    config.name = 'moments_in_time_fe'
    config.data.dataset = 'Moments in Time'
    config.data.num_classes = (339,)
    config.data.train_examples = 800_000  # about
    config.training.epochs = 10.0
    config.optimizer.learning_rate = 0.25
    return apply_size(config, size)
