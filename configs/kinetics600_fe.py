"""Model 2, factorised encoder, on Kinetics-600 (paper, tables 6 and 8).

As on Kinetics-400 with 600 classes: momentum SGD, 64 clips a step, 30 epochs, learning rate 0.1; 4 x 3 views.

Expected: 82.9 % top-1 for L/16x2 from an image ViT trained on ImageNet-21k (Scenic's released weights: 81.6).
Hardware and time: TPU pods in the paper, which gives no times; not measured here.
Four temporal layers at every size, as in the paper.
Data: Kinetics-600 (about 390,000 training videos), as ROOT/train/CLASS/*.mp4 and ROOT/validation/CLASS/*.mp4.

    python -m vivit_jax.main --config=configs/kinetics600_fe.py --config.data.root=ROOT
"""

from vivit_jax.config import apply_size, default_config


def get_config(size='L/16x2'):
    """Returns the config of a size, as L/16x2 or B/16x4@64: SIZE/PATCHxTUBELET[@FRAMES]."""
    config = default_config()
    config.name = 'kinetics600_fe'
    config.data.dataset = 'Kinetics-600'
    config.data.num_classes = (600,)
    config.data.train_examples = 390_000  # about
    return apply_size(config, size)
