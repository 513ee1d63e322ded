r"""Your own videos, from tens to thousands: point at a folder or a table, the classes are found by themselves.

The model is small and starts fresh, so that two CPU cores are enough to begin with: Model 2 (factorised encoder), 16
frames of 112 x 112, every fourth one (2 to 3 seconds), 6 + 2 layers of width 192. What it does for few videos:
AdamW, weight decay, label smoothing and stochastic depth: few videos are soon learnt by heart.
Light augmentation: a random crop, mirroring, now and then other colours. Where left and right are classes:
--config.data.flip=0.
40 epochs in batches of 8, and the epoch kept that was best in validation.
Videos shorter than their clip repeat their last frame (--config.data.short=loop: begin again).
4 x 3 views of each video at the end.

Expected: depends on your videos. A fresh model needs hundreds of them for each class; with fewer, start from
pretrained weights: --config.init_from.path=WEIGHTS (docs/weights.md) with a size that fits them, as below. Use
configs/finetune.py instead where a GPU allows the weights' own 224 x 224 pixels and 32 frames.
Hardware and time: two CPU cores train 20 to 30 clips a second after half a minute of compiling: four videos take a
minute or two in all, a thousand half an hour.
Data: ROOT/CLASS/*.mp4, or ROOT/train/CLASS/*.mp4 and ROOT/validation/CLASS/*.mp4, or a table (path,label and more);
docs/data.md shows the forms. Where nobody says which videos validate, a fifth does, the same one in every run.

    python -m vivit_jax.data.check --config=configs/my_videos.py --config.data.root=ROOT
    python tools/show_batches.py --config=configs/my_videos.py --config.data.root=ROOT
    python -m vivit_jax.main --config=configs/my_videos.py --config.data.root=ROOT
    python -m vivit_jax.main --config=configs/my_videos.py --config.data.csv=TABLE.csv

Larger models are an argument, SIZE/PATCHxTUBELET[@FRAMES]:

    python -m vivit_jax.main --config=configs/my_videos.py:S/16x2 --config.data.root=ROOT \
        --config.data.short_side=256 --config.data.crop=224,224 --config.init_from.path=WEIGHTS

On a GPU add --config.model.dtype=bfloat16. Rare classes: --config.data.sampling=balanced. Several labels a video,
`a|b`: --config.training.loss=sigmoid --config.checkpoint.best_metric=mean_average_precision.
"""

from vivit_jax.config import apply_size, default_config


def get_config(size=''):
    """Returns the config; `size` is SIZE/PATCHxTUBELET[@FRAMES], or empty for the small model above."""
    config = default_config()
    config.name = 'my_videos'
    config.model.attention = 'factorised_encoder'
    config.model.num_layers, config.model.temporal_layers = 6, 2
    config.model.num_heads = 3
    config.model.width, config.model.mlp_dim = 192, 768
    config.model.tubelet = (2, 16, 16)
    config.model.drop_path_rate = 0.1
    config.data.frames, config.data.stride = 16, 4
    config.data.short_side = 128
    config.data.crop = (112, 112)
    config.data.colour_jitter, config.data.colour_drop = 0.3, 0.0
    config.training.epochs = 40.0
    config.training.batch_size = 8
    config.training.label_smoothing = 0.1
    config.training.log_every = 10
    config.optimizer.name = 'adamw'
    config.optimizer.learning_rate = 5e-4
    config.optimizer.weight_decay = 0.05
    config.evaluation.every_epochs = 4.0
    config.evaluation.batch_size = 24  # clips: two videos with all their views
    config.checkpoint.best_metric = 'top_1'
    return apply_size(config, size) if size else config
