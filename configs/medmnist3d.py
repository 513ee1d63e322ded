r"""Small medical volumes, MedMNIST 3D: our recipe for any of its six sets (Yang et al. 2023).

Model 4 (factorised dot-product attention) on cubes of 4 x 4 x 4 voxels: 343 tokens of width 64, 4 layers, mean
pooling. What it does for a thousand volumes: each axis mirrored half of the time, small rotations and shifts, AdamW,
label smoothing, stochastic depth, and the moving average of the parameters is what is evaluated. The epoch that is
best by validation AUC is kept, and the test split looked at once, at the end: each volume and its mirror images, 8
views.

The argument is SET or SET/SIZE:

    organ     11 organs in CT; not mirrored, since left and right are classes
    nodule    2 classes of lung nodules in CT
    adrenal   2 shapes of adrenal glands, from CT
    fracture  3 kinds of rib fractures in CT
    vessel    2 shapes of brain vessels, from MR angiography
    synapse   2 kinds of synapses in electron microscopy

SIZE is 28 voxels along an axis, or 64: tokens then are cubes of 8 voxels, 512 of them.

Expected, over seeds 0 and 1: test AUC and accuracy of 0.827 and 0.812 on adrenal (best official ones 0.839 and
0.802), 0.644 and 0.383 on fracture (best 0.750 and 0.517). The other sets are not measured.
Hardware and time: one core of a shared CPU, 16 minutes on adrenal, 14 on fracture.
Data: `SETmnist3d.npz`, or `SETmnist3d_64.npz`, of MedMNIST v2 in ROOT; with the package medmnist installed it is
downloaded.

    python -m vivit_jax.main --config=configs/medmnist3d.py:adrenal --config.data.root=ROOT --config.seed=0
    python -m vivit_jax.main --config=configs/medmnist3d.py:fracture --config.data.root=ROOT --config.seed=0

`python tools/medmnist_table.py RUN_DIR ...` puts runs, and their seeds, beside the official results.
"""

from vivit_jax.config import default_config
from vivit_jax.data.medmnist import SETS

SHAPES_ONLY = ('adrenal', 'vessel')  # masks: inside or outside, so there is no intensity to change
TOKENS = {28: 4, 64: 8}  # voxels along an axis of a token, by those of a volume


def get_config(which='organ'):
    """Returns the config; `which` is SET or SET/SIZE."""
    config = default_config()
    config.name = 'medmnist3d'
    name, slash, text = which.partition('/')
    size = int(text) if text.isdecimal() else 0 if slash else 28
    if name not in SETS or size not in TOKENS:
        raise ValueError(
            f'set {which!r} of config {config.name!r}: write SET or SET/SIZE; sets: {", ".join(SETS)}; sizes: '
            f'{", ".join(map(str, TOKENS))}'
        )
    config.name = f'{config.name}_{which}'.replace('/', '_')
    config.model.attention = 'factorised_dot_product'
    config.model.num_layers, config.model.num_heads = 4, 4
    config.model.width, config.model.mlp_dim = 64, 256
    config.model.tubelet = (TOKENS[size],) * 3
    config.model.kernel_init = 'random'  # from scratch, every slice of a tubelet counts from the start
    config.model.classifier = 'gap'
    config.model.drop_path_rate = 0.1
    config.data.source = 'medmnist'
    config.data.medmnist.name, config.data.medmnist.size = name, size
    config.data.test_splits = ('test',)
    config.data.dataset = f'{name.capitalize()}MNIST3D of MedMNIST v2'
    config.data.num_classes = (len(SETS[name].class_names),)
    config.data.frames, config.data.stride = size, 1
    config.data.short_side, config.data.scale_jitter = 0, (1.0, 1.0)
    config.data.crop = (size, size)
    config.data.channels = 1
    config.data.flip = 0.0
    config.data.colour_jitter, config.data.colour_drop = 0.0, 0.0
    augment = config.data.volume_augment
    if name != 'organ':
        augment.flip = (0.5, 0.5, 0.5)
    augment.affine = 1.0
    augment.rotation = (15.0, 15.0, 15.0)
    augment.scale = (1.0, 1.0)  # how large a thing is tells its class
    augment.translation = 0.05
    if name not in SHAPES_ONLY:
        augment.intensity_scale, augment.intensity_shift = 0.1, 0.1
    config.training.epochs = 40.0
    config.training.batch_size = 16
    config.training.label_smoothing = 0.1
    config.training.ema_decay = 0.99
    config.optimizer.name = 'adamw'
    config.optimizer.learning_rate = 1e-3
    config.optimizer.warmup_epochs = 3.0
    config.optimizer.weight_decay = 0.05
    config.evaluation.every_epochs = 2.0
    config.evaluation.temporal_views, config.evaluation.spatial_views = 1, 1
    config.evaluation.mirror_views = name != 'organ'
    config.evaluation.report = 'medical'
    config.checkpoint.best_metric = 'auc'
    return config
