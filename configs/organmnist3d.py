"""Organs in CT volumes, OrganMNIST3D: 28 x 28 x 28 voxels, 11 classes (Yang et al. 2023).

A volume is a clip whose time axis is depth. Tubelets of 4 x 4 x 4 voxels (343 tokens), spatio-temporal attention;
no mirroring, since left and right kidney and femur are classes.

The argument is a size and its tubelet, SIZE/PATCHxTUBELET, as S/4x4 or Ti/7x7; where it is left out the model has
8 layers of width 128.

Expected: not measured yet; a published ViViT experiment with tubelets of 8 voxels has 0.77 test accuracy.
Hardware and time: one GPU or a CPU; not measured yet.
Data: `organmnist3d.npz` (971 training, 161 validation, 610 test volumes) of MedMNIST v2, in ROOT.

    python -m vivit_jax.main --config=configs/organmnist3d.py --config.data.root=ROOT
"""

from vivit_jax.config import apply_size, default_config


def get_config(size=''):
    """Returns the config; `size` is SIZE/PATCHxTUBELET, or empty for the small model above."""
    config = default_config()
    config.name = 'organmnist3d'
    config.model.attention = 'spatio_temporal'
    config.model.num_layers, config.model.num_heads = 8, 8
    config.model.width, config.model.mlp_dim = 128, 512
    config.model.tubelet = (4, 4, 4)
    config.model.classifier = 'gap'
    config.model.dropout_rate = 0.1
    config.data.source = 'medmnist'
    config.data.test_splits = ('test',)
    config.data.dataset = 'OrganMNIST3D (organmnist3d.npz of MedMNIST v2)'
    config.data.num_classes = (11,)
    config.data.frames, config.data.stride = 28, 1
    config.data.short_side, config.data.scale_jitter = 0, (1.0, 1.0)
    config.data.crop = (28, 28)
    config.data.channels = 1
    config.data.flip = 0.0
    config.data.colour_jitter, config.data.colour_drop = 0.0, 0.0
    config.training.epochs = 60.0
    config.training.batch_size = 32
    config.optimizer.name = 'adamw'
    config.optimizer.learning_rate = 5e-4
    config.optimizer.weight_decay = 0.05
    config.evaluation.temporal_views, config.evaluation.spatial_views = 1, 1
    config.checkpoint.best_metric = 'top_1'
    return apply_size(config, size) if size else config
