r"""TimeSformer, divided space-time attention, on Kinetics-400 (Bertasius et al., ICML 2021).

Patches of 16 pixels in every frame, ViT-B; momentum SGD with a learning rate of 0.005, a tenth of it after 11 epochs
and a hundredth after 14 of 15, 8 clips a step, weight decay 1e-4, stochastic depth up to 0.1; one clip from the
middle of a video in 3 crops at the end. The settings are those of the authors' repository.

The argument is a variant:

    file                             frames  every  pixels  paper, top-1  GFLOPs a view
    kinetics400_timesformer.py            8   32nd     224        78.0 %          195.6
    kinetics400_timesformer.py:HR        16   16th     448        79.7 %        1,702.3
    kinetics400_timesformer.py:L         96    4th     224        80.7 %        2,377.2

Expected: the above, when it starts from an image ViT trained on ImageNet-21k (the weights that the authors published
have 77.9, 79.6 and 80.6 %); from fresh parameters far less. Not measured here.
Different here: no Nesterov momentum; pixels scaled to [-1, 1] (theirs by mean 0.45 and deviation 0.225); height and
width jittered independently; stochastic depth drawn once an example and branch, not for every frame and place, and
rising from 0.1 / 12 in the first block, not from 0; a fresh cls token and MLPs start otherwise.
From an image ViT the attention over time starts as a copy of that over space behind a map of zeros, as theirs does.
Hardware and time: 8 GPUs in the authors' settings; not measured here.
121.6 M parameters (HR 122.0 M). GFLOPs are thousand million multiply-adds.
Data: Kinetics-400 (about 240,000 training videos), as ROOT/train/CLASS/*.mp4 and ROOT/validation/CLASS/*.mp4.

    python -m vivit_jax.main --config=configs/kinetics400_timesformer.py --config.data.root=ROOT \
        --config.init_from.path=WEIGHTS

WEIGHTS is a file or folder of an image ViT-B/16. Another attention in place of divided has no cls token, but for
spatio_temporal and factorised_encoder: add --config.model.classifier=gap.
"""

from vivit_jax.config import default_config

# Frames, stride, pixels of the crop, range of the short side while training.
VARIANTS = {'': (8, 32, 224, (256, 320)), 'HR': (16, 16, 448, (448, 512)), 'L': (96, 4, 224, (256, 320))}


def get_config(variant=''):
    """Returns the config; `variant` is empty, HR or L."""
    config = default_config()
    config.name = 'kinetics400_timesformer'
    if variant not in VARIANTS:
        raise ValueError(f'variant {variant!r} of config {config.name!r}: choose none, HR, L')
    if variant:
        config.name = f'{config.name}_{variant}'
    frames, stride, pixels, (smallest, largest) = VARIANTS[variant]
    config.model.attention = 'divided'
    config.init_from.temporal_attention = 'copy'
    config.model.tubelet = (1, 16, 16)
    config.model.position_embedding = 'learned_space_time'
    config.model.activation = 'gelu_exact'
    config.model.drop_path_rate = 0.1
    config.data.dataset = 'Kinetics-400'
    config.data.num_classes = (400,)
    config.data.train_examples = 240_000  # about
    config.data.frames, config.data.stride = frames, stride
    config.data.crop = (pixels, pixels)
    config.data.short_side = pixels  # in evaluation
    config.data.scale_jitter = (smallest / pixels, largest / pixels)
    config.data.colour_jitter, config.data.colour_drop = 0.0, 0.0
    config.training.epochs = 15.0
    config.training.batch_size = 8
    config.optimizer.learning_rate = 0.005
    config.optimizer.schedule = 'steps'
    config.optimizer.drop_epochs = (11, 14)
    config.optimizer.warmup_epochs = 0.0
    config.optimizer.max_grad_norm = 0.0
    config.optimizer.weight_decay = 1e-4
    config.optimizer.weight_decay_mode = 'l2'
    config.optimizer.weight_decay_mask = 'all'
    config.evaluation.temporal_views = 1
    return config
