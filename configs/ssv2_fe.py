"""Model 2, factorised encoder, on Something-Something v2 (paper, tables 6 and 8).

Appearance says little here, so regularisation is strong: RandAugment 2 / 20, stochastic depth 0.3, label smoothing
0.3, mixup 0.3, no colour jitter; 35 epochs, learning rate 0.5; 4 x 3 views. Clips are mirrored half of the time, as
in the paper, although some classes name a direction: --config.data.flip=0 leaves that out.

Expected: 65.9 % top-1 for L/16x2 from Kinetics weights.
Hardware and time: TPU pods in the paper, which gives no times; not measured here.
Data: Something-Something v2 (168,913 training, 24,777 validation videos), as ROOT/train/CLASS/*.webm and
ROOT/validation/CLASS/*.webm, or listed in ROOT/train.csv and ROOT/validation.csv with the columns path,label.

    python -m vivit_jax.main --config=configs/ssv2_fe.py --config.data.root=ROOT
"""

from vivit_jax.config import apply_size, default_config


def get_config(size='L/16x2'):
    """Returns the config of a size, as L/16x2 or B/16x4@64: SIZE/PATCHxTUBELET[@FRAMES]."""
    config = default_config()
    config.name = 'ssv2_fe'
    config.model.drop_path_rate = 0.3
    config.data.dataset = 'Something-Something v2'
    config.data.num_classes = (174,)
    config.data.train_examples = 168_913
    config.data.colour_jitter = 0.0
    config.data.colour_drop = 0.0
    config.data.randaugment_layers = 2
    config.data.randaugment_magnitude = 20.0
    config.training.epochs = 35.0
    config.training.label_smoothing = 0.3
    config.training.mixup_alpha = 0.3
    config.optimizer.learning_rate = 0.5
    return apply_size(config, size)
