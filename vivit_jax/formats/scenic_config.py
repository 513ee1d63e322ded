"""Scenic's configurations of ViViT, said in our words.

Their field names are those of `scenic/projects/vivit/configs` and of the code that reads them, old spellings too.
What a field that is left out stands for is what Scenic's code takes then, which is not always our default.
"""

import math
import warnings
from collections.abc import Mapping
from typing import Any

from vivit_jax import config as config_module
from vivit_jax.config import ConfigDict
from vivit_jax.formats.scenic_fields import Fields
from vivit_jax.formats.weights import shortened_line
from vivit_jax.models.vivit import create_model

# 'factorised' is read as 'factorized' first.
ATTENTIONS = {
    'spacetime': 'spatio_temporal',
    'factorized_encoder': 'factorised_encoder',
    'factorized_self_attention_block': 'factorised_self_attention',
    'factorized_self_attention': 'factorised_self_attention',
    'factorized_space_time': 'factorised_self_attention',
    'factorized_transformer_block': 'factorised_self_attention',
    'factorized_dot_product_attention': 'factorised_dot_product',
    'factorized_dot_product': 'factorised_dot_product',
}
CLASSIFIERS = {'token': 'token', 'gap': 'gap', 'gmp': 'gmp', 'gsp': 'gsp', '0': 'first_token'}
POSITIONS = {
    'learned_1d': 'learned',
    'sinusoidal_1d': 'sinusoidal_1d',
    'sinusoidal_3d': 'sinusoidal_3d',
    'none': 'none',
}
# Of a fresh tubelet kernel, and of one made from an image model's.
KERNELS = {
    'central_frame_initializer': ('central_frame', 'central_frame'),
    'average_frame_initializer': ('average', 'average'),
    'average_arp_frame_initializer': ('random', 'rank_pooling'),
    '': ('random', 'central_frame'),
}
LOSSES = {
    'vivit_classification': 'softmax',
    'vivit_multihead_classification': 'softmax',
    'vivit_multilabel_classification': 'sigmoid',
}
OPTIMIZERS = {
    'momentum': 'momentum',
    'momentum_hp': 'momentum',
    'sgd': 'momentum',
    'adam': 'adam',
    'adamw': 'adamw',
}
FACTORS = {'constant', 'cosine_decay', 'linear_warmup'}


def to_config(scenic_config: Mapping[str, Any] | ConfigDict) -> ConfigDict:
    """Returns our configuration for one of Scenic's.

    One warning names the fields that are not understood, when there are any.

    Args:
        scenic_config: A ConfigDict as Scenic's `get_config()` returns, or the same as nested dicts.

    Raises:
        ValueError: One line: a value that ViViT cannot have, or a field that is missing.
    """
    config, unknown, _ = translate(scenic_config)
    if unknown:
        warnings.warn(
            f"not understood of Scenic's configuration: {', '.join(unknown)}", UserWarning, stacklevel=2
        )
    return config


def translate(scenic_config: Mapping[str, Any] | ConfigDict) -> tuple[ConfigDict, list[str], list[str]]:
    """Returns our configuration, the fields that were not understood, and remarks on what differs here.

    Raises:
        ValueError: As `to_config`.
    """
    try:
        return _translated(scenic_config)
    except ValueError as error:
        raise ValueError(shortened_line(' '.join(str(error).split()))) from error
    except Exception as error:  # groups where values are expected, text where numbers are
        words = ' '.join(f'{type(error).__name__}: {error}'.split())[:200]
        raise ValueError(f"Scenic's configuration is not as such ones are ({words})") from error


def _translated(scenic_config: Mapping[str, Any] | ConfigDict) -> tuple[ConfigDict, list[str], list[str]]:
    fields = Fields(scenic_config)
    config = config_module.default_config()
    config.name = fields.text('experiment_name', 'scenic')
    config.seed = fields.whole('rng_seed', 0)
    _data(fields, config.data)
    _augmentation(fields, config)
    _model(fields, config)
    _training(fields, config)
    _optimizer(fields, config.optimizer)
    _learning_rate(fields, config)
    _init_from(fields, config)
    # Weights of a model without classes are checked as well as any other.
    create_model(sum(config.data.num_classes), **config.model)
    config_module.check(config)
    return config.lock(), fields.left(), fields.remarks


def _data(fields: Fields, data: Any) -> None:
    """Translates clips, frames and classes."""
    name = fields.text('dataset_name')
    data.dataset = '' if name == 'video_tfrecord_dataset' else name
    data.frames = fields.whole('dataset_configs.num_frames', 32)
    data.stride = fields.whole('dataset_configs.stride', 2)
    data.short_side = fields.whole('dataset_configs.min_resize', 256)
    crop = fields.whole('dataset_configs.crop_size', 224)
    data.crop = (crop, crop)
    data.prefetch = max(fields.whole('dataset_configs.prefetch_to_device', 1), 1)
    split = fields.take('dataset_configs.test_split')
    if split is not None:
        data.test_splits = (split,)
    classes = fields.whole('dataset_configs.num_classes', 0)
    sizes = fields.take('dataset_configs.class_splits') or ()
    names = fields.take('dataset_configs.split_names') or ()
    if sizes:
        data.num_classes = tuple(int(size) for size in sizes)
        data.heads = tuple(names) or tuple(str(head + 1) for head in range(len(sizes)))
        if classes not in (0, sum(sizes)):
            raise ValueError(
                f'dataset_configs.num_classes={classes}, but dataset_configs.class_splits={list(sizes)} add up to '
                f'{sum(sizes)}'
            )
    elif classes:
        data.num_classes = (classes,)
    if not fields.take('dataset_configs.zero_centering', True):
        fields.remarks.append(
            'dataset_configs.zero_centering=False: pixels were in [0, 1] there; here they are in [-1, 1]'
        )


def _augmentation(fields: Fields, config: Any) -> None:
    """Translates what is done to clips while training; what a configuration does not ask for is off."""
    data, group = config.data, 'dataset_configs.augmentation_params'
    low = fields.number(f'{group}.scale_min_factor', 1.0)
    high = fields.number(f'{group}.scale_max_factor', 1.0)
    probability = fields.number(f'{group}.prob_scale_jitter', 1.0)
    jitter = bool(fields.take(f'{group}.do_jitter_scale', False)) and probability > 0
    data.scale_jitter = (low, high) if jitter else (1.0, 1.0)
    if jitter and probability < 1:
        fields.remarks.append(f'prob_scale_jitter={probability}: here every clip is scaled')
    layers = fields.whole(f'{group}.rand_augment_num_layers', 0)
    magnitude = fields.number(f'{group}.rand_augment_magnitude', 0.0)
    asked = [
        fields.take(f'{group}.{name}', False)
        for name in ('do_rand_augment', 'do_randaugment', 'do_random_augment')
    ]
    if any(asked):
        data.randaugment_layers, data.randaugment_magnitude = layers, magnitude
    colours = bool(fields.take(f'{group}.do_color_augment', False))
    strong, grey = (
        fields.number(f'{group}.{name}', 0.0) for name in ('prob_color_augment', 'prob_color_drop')
    )
    if colours and any(asked):
        fields.remarks.append(
            'do_color_augment: Scenic does it only where it does no RandAugment, and so here'
        )
    data.colour_jitter, data.colour_drop = (strong, grey) if colours and not any(asked) else (0.0, 0.0)
    wanted = fields.take(f'{group}.do_mixup', True)
    alphas = [fields.number(name, 0.0) for name in ('mixup.alpha', f'{group}.mixup_alpha')]
    config.training.mixup_alpha = max(alphas) if wanted else 0.0


def _model(fields: Fields, config: Any) -> None:
    """Translates the model."""
    model, data = config.model, config.data
    old = fields.take('model_variant') == 'space_time_vivit'
    name = fields.text('model.attention_config.type', 'factorized_encoder' if old else 'spacetime')
    name = name.replace('factorised', 'factorized')
    if name not in ATTENTIONS:
        raise ValueError(
            f"model.attention_config.type={name!r} of Scenic's configuration: ViViT has {', '.join(ATTENTIONS)}"
        )
    model.attention = ATTENTIONS[name]
    if name == 'factorized_transformer_block':
        fields.remarks.append(
            f'model.attention_config.type={name!r}, which Scenic has no code for any more, is taken as '
            'factorised_self_attention'
        )
    model.attention_order = fields.text('model.attention_config.attention_order', 'space_time')
    model.width = fields.whole('model.hidden_size')
    _encoders(fields, model)
    _tokens(fields, config)
    model.classifier = fields.choice('model.classifier', CLASSIFIERS, 'gap')
    other = fields.choice('model.positional_embed', POSITIONS, 'learned_1d')
    spelling = next(name for name, ours in POSITIONS.items() if ours == other)
    model.position_embedding = fields.choice('model.positional_embedding', POSITIONS, spelling)
    model.final_norm = bool(fields.take('model.normalise_output', True))
    model.representation_size = fields.whole('model.representation_size', 0)
    model.dropout_rate = fields.number('model.dropout_rate', 0.1)
    model.attention_dropout_rate = fields.number('model.attention_dropout_rate', 0.1)
    model.drop_path_rate = fields.number('model.stochastic_droplayer_rate', 0.0)
    model.dtype = fields.text('model_dtype_str', 'float32')
    clip = (model.sampled_frames or data.frames, *data.crop)
    fits = all(size % tube == 0 for size, tube in zip(clip, model.tubelet, strict=True))
    # A convolution leaves out what is over at the end.
    model.remainder = 'error' if fits else 'crop'


def _encoders(fields: Fields, model: Any) -> None:
    """Translates layers, heads and MLPs."""
    encoders = model.attention == 'factorised_encoder'
    baseline = bool(fields.take('model.attention_config.spatial_only_baseline', False))
    apart = encoders and fields.has('model.spatial_transformer')
    group = 'model.spatial_transformer' if apart else 'model'
    model.num_layers = fields.whole(f'{group}.num_layers')
    model.num_heads = fields.whole(f'{group}.num_heads')
    model.mlp_dim = fields.whole(f'{group}.mlp_dim')
    temporal = {
        name: fields.whole(f'model.temporal_transformer.{name}', 0)
        for name in ('num_layers', 'num_heads', 'mlp_dim')
    }
    for name in temporal:
        # Of no use beside the encoders' own.
        fields.take(f'model.spatial_transformer.{name}')
        fields.take(f'model.{name}')
    if not encoders:
        return
    if baseline:
        model.temporal_layers = 0
        return
    if not temporal['num_layers']:
        raise ValueError("model.temporal_transformer.num_layers is missing in Scenic's configuration")
    model.temporal_layers = temporal['num_layers']
    for name in ('num_heads', 'mlp_dim'):
        if temporal[name] not in (0, model[name]):
            raise ValueError(
                f'model.temporal_transformer.{name}={temporal[name]}, but model.spatial_transformer.{name}='
                f'{model[name]}: here both encoders have the same'
            )


def _tokens(fields: Fields, config: Any) -> None:
    """Translates tubelets or sampled frames; Scenic's patches are (high, wide, frames)."""
    model = config.model
    patch = fields.take('model.patches.size')
    if not isinstance(patch, tuple | list) or len(patch) not in (2, 3):
        raise ValueError(
            f"model.patches.size={patch!r} of Scenic's configuration: must be (high, wide, frames)"
        )
    high, wide, *time = (int(size) for size in patch)
    model.tubelet = (*(time or (1,)), high, wide)
    frames = fields.whole('model.temporal_encoding_config.n_sampled_frames', 0)
    method = fields.text('model.temporal_encoding_config.method', '3d_conv')
    kernel = fields.text('model.temporal_encoding_config.kernel_init_method')
    if method == 'temporal_sampling':
        model.embedding = 'uniform_frame_sampling'
        model.tubelet = (1, high, wide)
        model.sampled_frames = frames
        return
    if method != '3d_conv':
        raise ValueError(
            f"model.temporal_encoding_config.method={method!r} of Scenic's configuration: must be 3d_conv or "
            'temporal_sampling'
        )
    if kernel not in KERNELS:
        fields.not_understood('model.temporal_encoding_config.kernel_init_method')
        kernel = ''
    model.kernel_init, config.init_from.kernel = KERNELS[kernel]


def _training(fields: Fields, config: Any) -> None:
    """Translates training and evaluation."""
    training, evaluation = config.training, config.evaluation
    name = fields.text('model_name', 'vivit_classification')
    if name not in LOSSES:
        fields.not_understood('model_name')
    training.loss = LOSSES.get(name, 'softmax')
    training.label_smoothing = fields.number('label_smoothing', 0.0)
    training.batch_size = fields.whole('batch_size', training.batch_size)
    training.log_every = fields.whole('log_summary_steps', training.log_every)
    evaluation.every_steps = fields.whole('log_eval_steps', 0)
    evaluation.batch_size = fields.whole('eval_batch_size', training.batch_size)
    evaluation.temporal_views = fields.whole('dataset_configs.num_test_clips', 1)
    evaluation.spatial_views = 3 if fields.take('dataset_configs.do_three_spatial_crops', False) else 1
    softmax = fields.take('multicrop_softmax_logits', False)
    evaluation.average = 'softmax' if softmax else 'logits'
    views = evaluation.temporal_views * evaluation.spatial_views
    if not fields.take('dataset_configs.do_multicrop_test', False) and views > 1:
        fields.remarks.append(
            f'dataset_configs.do_multicrop_test=False: here the {views} views of a video are used all the same'
        )
    config.checkpoint.every_steps = fields.whole('checkpoint_steps', config.checkpoint.every_steps)
    config.checkpoint.keep = fields.whole('max_checkpoints_to_keep', config.checkpoint.keep)


def _optimizer(fields: Fields, optimizer: Any) -> None:
    """Translates the optimiser, its clipping and its decay."""
    name = fields.text('optimizer_configs.optimizer') or fields.text('optimizer', 'momentum')
    if name not in OPTIMIZERS:
        fields.not_understood('optimizer')
    optimizer.name = OPTIMIZERS.get(name, 'momentum')
    group = 'optimizer_configs'
    # The old optimisers' own defaults; plain descent has no momentum.
    optimizer.momentum = fields.number(f'{group}.momentum', 0.0 if name == 'sgd' else 0.9)
    if fields.take(f'{group}.nesterov', False):
        fields.not_understood(f'{group}.nesterov')
    for ours, theirs in {'b1': ('b1', 'beta1'), 'b2': ('b2', 'beta2'), 'epsilon': ('eps', 'epsilon')}.items():
        for spelling in theirs:
            optimizer[ours] = fields.number(f'{group}.{spelling}', optimizer[ours])
    norm = fields.number('max_grad_norm', 0.0)
    for clip in ('grad_clip_configs', f'{group}.grad_clip'):
        value = fields.take(f'{clip}.clip_value')
        method = fields.take(f'{clip}.clip_method')
        if method == 'clip_by_global_norm' and value is not None:
            norm = float(value)
        elif method is not None and value is not None:
            fields.not_understood(f'{clip}.clip_method')
    optimizer.max_grad_norm = norm
    _weight_decay(fields, optimizer)


def _weight_decay(fields: Fields, optimizer: Any) -> None:
    """Translates the three places where Scenic has a weight decay."""
    skips = [
        fields.take(name, False)
        for name in (
            'skip_scale_and_bias_regularization',
            'optimizer_configs.skip_scale_and_bias_regularization',
        )
    ]
    own = fields.number('optimizer_configs.weight_decay', 0.0)
    if own and optimizer.name == 'adam':
        optimizer.name = 'adamw'
    mode = 'decoupled' if optimizer.name == 'adamw' else 'l2'
    places = {
        'explicit_weight_decay': (
            fields.number('explicit_weight_decay', 0.0),
            'decoupled',
            'kernels',
        ),
        'l2_decay_factor': (fields.number('l2_decay_factor', 0.0), 'l2', 'matrices'),
        'optimizer_configs.weight_decay': (own, mode, 'matrices' if any(skips) else 'all'),
    }
    asked = [name for name, (decay, _, _) in places.items() if decay]
    if optimizer.name == 'adamw' and own:
        asked.sort(key=lambda name: name != 'optimizer_configs.weight_decay')
    for name in asked[1:]:
        fields.not_understood(name)
    if asked:
        optimizer.weight_decay, optimizer.weight_decay_mode, optimizer.weight_decay_mask = places[asked[0]]


def _learning_rate(fields: Fields, config: Any) -> None:
    """Translates the schedule, and how long training lasts."""
    optimizer, training, group = config.optimizer, config.training, 'lr_configs'
    optimizer.learning_rate = fields.number(f'{group}.base_learning_rate', optimizer.learning_rate)
    schedule = fields.take(f'{group}.learning_rate_schedule')
    text = fields.text(f'{group}.factors', 'constant')
    factors = {factor.strip() for factor in text.split('*')}
    if schedule not in (None, 'compound'):
        fields.not_understood(f'{group}.learning_rate_schedule')
    if factors - FACTORS:
        fields.not_understood(f'{group}.factors')
    optimizer.schedule = 'cosine' if 'cosine_decay' in factors else 'constant'
    warmup = fields.number(f'{group}.warmup_steps', 0.0)
    optimizer.warmup_epochs = 0.0
    optimizer.warmup_steps = round(warmup) if 'linear_warmup' in factors else 0
    if optimizer.warmup_steps and optimizer.warmup_steps != warmup:
        fields.remarks.append(
            f'lr_configs.warmup_steps={warmup:g}: here {optimizer.warmup_steps}, a whole number'
        )
    cycle = fields.number(f'{group}.steps_per_cycle', 0.0)
    steps = fields.whole('num_training_steps', 0)
    epochs = fields.number('num_training_epochs', 0.0)
    training.epochs = epochs or training.epochs
    training.steps = steps or (0 if epochs else math.floor(cycle))
    if cycle and optimizer.schedule == 'cosine' and training.steps not in (0, cycle):
        fields.remarks.append(
            f'lr_configs.steps_per_cycle={cycle:g}: here the cosine ends with training, after {training.steps} steps'
        )


def _init_from(fields: Fields, config: Any) -> None:
    """Translates what training starts from."""
    start, group = config.init_from, 'init_from'
    there = fields.has(group)
    start.path = fields.text(f'{group}.checkpoint_path')
    kept = fields.take(f'{group}.init_temporal_transformer', True)
    method = fields.take('model.attention_config.attention_kernel_init_method', 'xavier')
    if method not in ('zero', 'xavier'):
        fields.not_understood('model.attention_config.attention_kernel_init_method')
    if not there:
        return
    if config.model.attention == 'factorised_self_attention':
        start.temporal_attention = 'copy' if kept else {'zero': 'zero'}.get(method, 'fresh')
    # Scenic starts the head afresh always.
    fresh = ['output_projection/*']
    if not fields.take(f'{group}.restore_input_embedding', True):
        fresh.append('embedding/*')
    if not fields.take(f'{group}.restore_positional_embedding', True):
        fresh.append('*/pos_embedding')
    start.fresh = ','.join(fresh)
