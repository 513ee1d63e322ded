"""Your own scans: NIfTI (.nii, .nii.gz) or NumPy (.npy, .npz) files, in one folder a class or listed in a table.

    ROOT/train/CLASS/*.nii.gz and ROOT/validation/CLASS/*.nii.gz, or ROOT/CLASS/*.nii.gz (a split is drawn and told)
    ROOT/train.csv, or --config.data.csv=FILE: the columns path and label, if wanted split, and others, as patient

Every scan is brought to 64 x 64 x 64 voxels in [-1, 1]; `docs/volumes.md` tells how, and what to change. For CT, say
which Hounsfield units to look at: --config.data.volumes.intensity=window --config.data.volumes.window=-160,240.
Several scans of one patient: --config.data.group=patient keeps them in one split. Rare classes:
--config.data.sampling=balanced. Nothing is mirrored, since left and right may be what you ask for.

Tubelets of 8 x 8 x 8 voxels (512 tokens), spatio-temporal attention, 8 layers of width 192. The argument is a size
and its tubelet, SIZE/PATCHxTUBELET, as S/8x8.

Expected: depends on the scans. Where classes are of different sizes look at the AUC, by which the epoch is chosen
that is kept, at `balanced_accuracy` and at the confusion table: `majority_accuracy` is what naming the largest class
would give. Scans with several heads have none of these: --config.evaluation.report=standard
--config.checkpoint.best_metric=loss.
Hardware and time: 3.8 M parameters, 2.7 GFLOPs (multiply-adds) a volume: one GPU; on a CPU take 32 voxels an axis
(0.2 GFLOPs), --config.data.frames=32 --config.data.crop=32,32.
Data: in ROOT, as above; NIfTI needs `pip install 'vivit_jax[volumes]'`.

    python -m vivit_jax.main --config=configs/my_volumes.py --config.data.root=ROOT
"""

from vivit_jax.config import apply_size, default_config


def get_config(size=''):
    """Returns the config; `size` is SIZE/PATCHxTUBELET, or empty for the small model above."""
    config = default_config()
    config.name = 'my_volumes'
    config.model.attention = 'spatio_temporal'
    config.model.num_layers, config.model.num_heads = 8, 6
    config.model.width, config.model.mlp_dim = 192, 768
    config.model.tubelet = (8, 8, 8)
    config.model.kernel_init = 'random'
    config.model.classifier = 'gap'
    config.model.dropout_rate = 0.1
    config.model.drop_path_rate = 0.1
    config.data.source = 'volumes'
    config.data.dataset = 'your scans'
    config.data.frames, config.data.stride = 64, 1
    config.data.crop = (64, 64)
    config.data.channels = 1
    config.data.short_side, config.data.scale_jitter = 0, (1.0, 1.0)
    config.data.flip, config.data.colour_jitter, config.data.colour_drop = 0.0, 0.0, 0.0
    config.data.volume_augment.affine = 0.5
    config.data.volume_augment.intensity_scale = 0.1
    config.data.volume_augment.intensity_shift = 0.1
    config.data.volume_augment.noise = 0.05
    config.training.epochs = 100.0
    config.training.batch_size = 16
    config.training.label_smoothing = 0.1
    config.training.log_every = 10
    config.optimizer.name = 'adamw'
    config.optimizer.learning_rate = 3e-4
    config.optimizer.warmup_epochs = 5.0
    config.optimizer.weight_decay = 0.05
    config.evaluation.batch_size = 16
    config.evaluation.temporal_views, config.evaluation.spatial_views = 1, 1
    config.evaluation.report = 'medical'
    config.checkpoint.best_metric = 'auc'
    return apply_size(config, size) if size else config
