r"""Your own videos, hundreds to a few thousand, with Model 2 (factorised encoder) from pretrained weights.

What was learnt before moves gently, what is new learns fast. Why these values:
AdamW at 1e-4: larger rates undo the pretraining before few videos can replace it.
Layer decay 0.75: the lower a layer, the more general what it has learnt (Clark et al. 2020; Bao et al. 2022).
Ten times the rate for the head, which starts at zero.
Weight decay 0.05, stochastic depth 0.1, label smoothing 0.1, mixup 0.2: so large a model learns few videos by heart.
A moving average of the parameters, and the best epoch by top_1: single epochs of a small set are noisy.
20 epochs in batches of 16: larger batches would leave few steps where an epoch has few videos.

Expected: not measured; it depends on your videos and on the weights.
Hardware and time: one GPU; not measured here. Where memory is short: --config.training.batch_size=8,
--config.model.dtype=bfloat16, or 16 frames instead of 32: configs/finetune.py:B/16x2@16.
Data: ROOT/train/CLASS/*.mp4 and ROOT/validation/CLASS/*.mp4; the classes are the folders.

WEIGHTS is a file or folder of pretrained weights of the same size, of an image ViT or a ViViT:

    python -m vivit_jax.main --config=configs/finetune.py --config.data.root=ROOT --config.init_from.path=WEIGHTS
    python -m vivit_jax.main --config=configs/finetune.py:L/16x2@16 --config.data.root=ROOT \
        --config.init_from.path=WEIGHTS

A linear probe trains the head alone, for a third of the arithmetic, and tells what the weights know already. It needs
no stochastic depth and no mixup, as so few parameters learn little by heart:

    python -m vivit_jax.main --config=configs/finetune.py --config.data.root=ROOT --config.init_from.path=WEIGHTS \
        --config.optimizer.train=head --config.model.drop_path_rate=0 --config.training.mixup_alpha=0

An image ViT has no temporal encoder, and one that is fresh must not be frozen: probe it with the frames averaged,
--config.model.temporal_layers=0, or train the temporal encoder too, with
--config.optimizer.freeze='embedding/*,cls_Sp*,Spatial*' in place of train=head.

In between, the lower half of the spatial encoder stays, for two thirds of the arithmetic (with its cls token and
positions: a gradient for those would have to pass all blocks above):
--config.optimizer.freeze='embedding/*,cls_Sp*,Spatial*/posembed_input/*,Spatial*/encoderblock_[0-5]/*'
"""

from vivit_jax.config import apply_size, default_config


def get_config(size='B/16x2'):
    """Returns the config of a size, as L/16x2 or B/16x2@16: SIZE/PATCHxTUBELET[@FRAMES]."""
    config = default_config()
    config.name = 'finetune'
    config.model.attention = 'factorised_encoder'
    config.model.drop_path_rate = 0.1
    config.training.epochs = 20.0
    config.training.batch_size = 16
    config.training.label_smoothing = 0.1
    config.training.mixup_alpha = 0.2
    config.training.ema_decay = 0.99
    config.training.log_every = 10
    config.optimizer.name = 'adamw'
    config.optimizer.learning_rate = 1e-4
    config.optimizer.layer_decay = 0.75
    config.optimizer.head_rate = 10.0
    config.optimizer.weight_decay = 0.05
    config.optimizer.warmup_epochs = 2.0
    config.evaluation.batch_size = 16
    config.checkpoint.best_metric = 'top_1'
    return apply_size(config, size)
