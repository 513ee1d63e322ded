"""Model 1, spatio-temporal attention, on Kinetics-400.

Clips of 32 frames, every second one, at 224 x 224; momentum SGD, 64 clips a step, 30 epochs, learning rate 0.1
with 2.5 epochs of warm-up and a cosine; 4 x 3 views at the end (paper, tables 2 and 8).

Expected: 80.0 % top-1 when it starts from an image ViT trained on ImageNet-21k; from fresh parameters far less.
Scenic's released weights: 79.9.
Hardware and time: TPU pods in the paper, which gives no times; not measured here.
88.9 M parameters, 455.2 thousand million multiply-adds a view.
Data: Kinetics-400 (about 240,000 training videos), as ROOT/train/CLASS/*.mp4 and ROOT/validation/CLASS/*.mp4.

    python -m vivit_jax.main --config=configs/kinetics400_spacetime.py --config.data.root=ROOT
"""

from vivit_jax.config import apply_size, default_config


def get_config(size='B/16x2'):
    """Returns the config of a size, as L/16x2 or B/16x4@64: SIZE/PATCHxTUBELET[@FRAMES]."""
    config = default_config()
    config.name = 'kinetics400_spacetime'
    config.model.attention = 'spatio_temporal'
    config.data.dataset = 'Kinetics-400'
    config.data.num_classes = (400,)
    config.data.train_examples = 240_000  # about
    return apply_size(config, size)
