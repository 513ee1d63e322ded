"""Model 2, factorised encoder, on EPIC-Kitchens-100, nouns and verbs (paper, tables 6 and 8).

One trunk with two heads, 300 nouns and 97 verbs; an action is right when both are. Every frame (stride 1), no
colour jitter, RandAugment 2 / 15, stochastic depth 0.2, label smoothing 0.2, mixup 0.1; 50 epochs, learning rate
0.5; 4 x 1 views.

Expected for L/16x2 from Kinetics weights: action 44.0 %, verb 66.4 %, noun 56.8 % (Scenic's released weights:
action 43.6 %).
Hardware and time: TPU pods in the paper, which gives no times; not measured here.
Data: EPIC-Kitchens-100 cut to its 67,217 training and 9,668 validation segments, listed in ROOT/train.csv and
ROOT/validation.csv with the columns path,noun,verb (class numbers).

    python -m vivit_jax.main --config=configs/epic_kitchens_fe.py --config.data.root=ROOT
"""

from vivit_jax.config import apply_size, default_config


def get_config(size='L/16x2'):
    """Returns the config of a size, as L/16x2 or B/16x4@64: SIZE/PATCHxTUBELET[@FRAMES]."""
    config = default_config()
    config.name = 'epic_kitchens_fe'
    config.model.drop_path_rate = 0.2
    config.data.heads = ('noun', 'verb')
    config.data.dataset = 'EPIC-Kitchens-100'
    config.data.num_classes = (300, 97)
    config.data.train_examples = 67_217
    config.data.stride = 1
    config.data.colour_jitter = 0.0
    config.data.colour_drop = 0.0
    config.data.randaugment_layers = 2
    config.data.randaugment_magnitude = 15.0
    config.training.epochs = 50.0
    config.training.label_smoothing = 0.2
    config.training.mixup_alpha = 0.1
    config.optimizer.learning_rate = 0.5
    config.evaluation.spatial_views = 1
    return apply_size(config, size)
