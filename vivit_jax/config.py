"""The configuration: every key with its unit and default, sizes by name, and checks that catch slips.

`default_config()` is the paper's recipe for Kinetics-400 with a factorised encoder of size B/16x2. An
experiment (`configs/NAME.py`) changes values only; it adds no keys.
"""

import difflib
import pathlib
import re
import runpy
import traceback
from collections.abc import Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict

from vivit_jax import config_values, json_files, paths
from vivit_jax.config_data import data_defaults

# Layers, heads, width, MLP width: Dosovitskiy et al. 2021 (B, L, H), Touvron et al. 2021 (Ti, S).
SIZES = {
    'Ti': (12, 3, 192, 768),
    'S': (12, 6, 384, 1536),
    'B': (12, 12, 768, 3072),
    'L': (24, 16, 1024, 4096),
    'H': (32, 16, 1280, 5120),
}
SIZE_FORM = 'SIZE/PATCHxTUBELET[@FRAMES], as B/16x2 or L/14x4@64; sizes: ' + ', '.join(SIZES)


# Settings that a run may change when it goes on, since its numbers do not depend on them.
FREE_TO_CHANGE = (
    'model.attention_backend',
    'model.scan_layers',
    'model.remat',
    'data.root',
    'data.csv',
    'data.dataset',
    'data.train_examples',
    'data.augment_on',
    'data.threads',
    'data.workers',
    'data.prefetch',
    'data.cache',
    'data.on_bad_video',
    'data.max_bad',
    'data.file_seconds',
    'data.validation_split',
    'data.test_splits',
    'training.accumulate',  # but for rounding, and for which numbers dropout draws
    'training.log_every',
    'training.on_nan',  # until a step is not finite
    'evaluation.every_epochs',
    'evaluation.every_steps',
    'evaluation.batch_size',
    'evaluation.temporal_views',
    'evaluation.spatial_views',
    'evaluation.mirror_views',
    'evaluation.average',
    'evaluation.report',
    'checkpoint.every_steps',
    'checkpoint.keep',
    'checkpoint.best_metric',
    'sharding.fsdp',
)


# What is part of the names of files that a run writes.
PARTS_OF_FILE_NAMES = ('name', 'data.heads', 'data.test_splits')


def default_config() -> ConfigDict:
    """Returns a locked config with every key there is: the paper's Kinetics-400 recipe, FE-B/16x2."""
    config = ConfigDict()
    config.name = 'base'  # of the experiment, and of its default workdir, runs/NAME
    config.seed = 0  # of parameters, shuffling, augmentation, dropout
    config.model = _model()
    config.init_from = _init_from()
    config.data = data_defaults()
    config.training = _training()
    config.optimizer = _optimizer()
    config.evaluation = _evaluation()
    config.checkpoint = _checkpoint()
    config.sharding = ConfigDict()
    config.sharding.fsdp = (
        1  # devices that share one copy of the parameters; 1: a copy on each (data-parallel)
    )
    return config.lock()


def _model() -> ConfigDict:
    model = ConfigDict()
    # spatio_temporal | factorised_encoder | factorised_self_attention | factorised_dot_product (ViViT's);
    # divided | space_only | axial | local_global (TimeSformer's); docs/attention.md shows what each looks at
    model.attention = 'factorised_encoder'
    model.num_layers = 12  # blocks (of the spatial encoder, for factorised_encoder)
    model.num_heads = 12  # attention heads; must divide model.width
    model.width = 768  # numbers in a token
    model.mlp_dim = 3072  # hidden size of the MLPs (after the gate of geglu)
    model.temporal_layers = 4  # blocks of factorised_encoder's temporal encoder; 0: average the frames
    model.attention_order = 'space_time'  # in blocks of factorised_self_attention: space_time | time_space
    model.embedding = 'tubelet'  # how pixels become tokens: tubelet | uniform_frame_sampling
    model.tubelet = (2, 16, 16)  # what becomes a token: (frames, pixels high, pixels wide)
    model.sampled_frames = 0  # frames that uniform_frame_sampling keeps; 0: all
    model.kernel_init = 'central_frame'  # a fresh tubelet kernel: central_frame | average | random
    model.remainder = 'error'  # tubelets that do not divide the clip: error | crop
    model.classifier = 'token'  # token (not for all attentions) | gap | gmp | gsp | first_token
    # learned | learned_space_time (TimeSformer's: a table of places plus one of times) | sinusoidal_1d |
    # sinusoidal_2d | sinusoidal_3d | none
    model.position_embedding = 'learned'
    model.representation_size = 0  # width of a tanh layer before the head; 0: none
    model.dropout_rate = 0.0  # probability of dropping a number of tokens, attention output, MLP
    model.attention_dropout_rate = 0.0  # probability of dropping an attention weight
    model.drop_path_rate = 0.0  # stochastic depth: probability at the last block, rising linearly to it
    model.activation = 'gelu_tanh'  # gelu_tanh | gelu_exact | geglu (gated by a GELU, tanh)
    model.norm_epsilon = 1e-6  # of LayerNorm, added to the variance
    model.final_norm = True  # LayerNorm at the end of an encoder
    # What computes attention, to rounding the same: auto | xla (all weights in memory) | blockwise (at most those
    # of 1,024 tokens at once) | cudnn (GPUs, bfloat16) | flash (TPUs)
    model.attention_backend = 'auto'
    # Blocks as a scan: fsdp, and remat on CPUs, save memory with it alone. Slower steps on CPUs.
    model.scan_layers = False
    # What the backward pass computes anew, for less memory: none | attention | dots (all but products with
    # parameters) | block (everything)
    model.remat = 'none'
    model.dtype = 'float32'  # of the computation: float32 | bfloat16; parameters stay float32
    return model


def _init_from() -> ConfigDict:
    init_from = ConfigDict()
    init_from.path = ''  # trained weights to start from: file or folder (docs/weights.md); '': none
    # auto | vivit_jax | scenic | vit_npz | big_vision | hf_vit | hf_vivit | hf_timesformer | timesformer | timm:
    # to insist on a format
    init_from.format = 'auto'
    # of an image ViT into tubelets: central_frame | average (filter inflation) | rank_pooling | fresh
    init_from.kernel = 'central_frame'
    # of an image ViT into blocks with several attentions: zero_output | zero | copy | fresh
    init_from.temporal_attention = 'zero_output'
    init_from.fresh = ''  # patterns of parameters to leave fresh, as output_projection/*,*/pos_embedding
    init_from.num_heads = 0  # attention heads of the weights, where the file does not tell; 0: as it tells
    init_from.allow_unused = ''  # patterns of the file's arrays that may be left out without a known reason
    return init_from


def _training() -> ConfigDict:
    training = ConfigDict()
    training.epochs = 30.0  # passes over the training split
    training.steps = 0  # instead of epochs, where not 0
    training.batch_size = 64  # clips, over all devices
    # micro-batches that a batch is gone through in, for the memory of one of them: the same gradient and update but
    # for rounding, whatever the loss and mixup; only dropout and stochastic depth draw other numbers
    training.accumulate = 1
    # softmax | sigmoid (several labels an example) | softmax_twice (a slip to reproduce: see losses.py)
    training.loss = 'softmax'
    training.label_smoothing = 0.0  # share of the target spread over all classes
    training.mixup_alpha = 0.0  # of mixup's Beta distribution; 0: no mixup
    # moving average of the parameters, evaluated instead of them; 0: none. At step s it is at most
    # (1 + s) / (10 + s), so that a young average follows.
    training.ema_decay = 0.0
    training.log_every = 50  # steps from one line of the log to the next
    # Where the loss or gradient of a step is not finite: stop | skip (its update; 10 in a row stop) | rewind (to the
    # last checkpoint, and on without the batches that led there; at most 10 times)
    training.on_nan = 'stop'
    return training


def _optimizer() -> ConfigDict:
    optimizer = ConfigDict()
    optimizer.name = 'momentum'  # momentum | adam | adamw
    optimizer.learning_rate = 0.1  # at its highest
    optimizer.schedule = 'cosine'  # after the warm-up: cosine (to 0) | constant | steps
    optimizer.drop_epochs = ()  # for steps: epochs after each of which the rate is a tenth, as (11, 14)
    optimizer.warmup_epochs = 2.5  # linear, from 0
    optimizer.warmup_steps = 0  # instead of warmup_epochs, where not 0
    optimizer.momentum = 0.9  # of momentum: share of the last update that is kept
    optimizer.b1 = 0.9  # of adam: decay of the mean of gradients
    optimizer.b2 = 0.999  # of adam: decay of the mean of their squares
    optimizer.epsilon = 1e-8  # of adam, added to the root of that mean
    # in which momentum, or adam's mean of gradients, is kept between steps: float32 | bfloat16 (half the bytes, 3
    # digits). Everything is computed in float32; parameters and adam's mean of squares are kept in it as well.
    optimizer.state_dtype = 'float32'
    optimizer.max_grad_norm = 1.0  # gradient clipped to this global norm; 0: not
    optimizer.weight_decay = 0.0  # in decoupled mode w shrinks by learning rate * this * w a step
    optimizer.weight_decay_mode = (
        'decoupled'  # decoupled (from the gradient, times the rate) | l2 (added to it)
    )
    optimizer.weight_decay_mask = 'kernels'  # kernels | matrices (more than one axis) | all
    # What learns, and how fast (learning_rates.py): factors of the learning rate, and so of decoupled decay.
    optimizer.train = 'all'  # all | head (the rest frozen: a linear probe)
    optimizer.freeze = ''  # patterns of parameters that stay as they are, as embedding/*,cls*
    optimizer.layer_decay = 1.0  # factor from each layer to the one below it, in (0, 1]; the head's is 1
    optimizer.head_rate = 1.0  # factor of the head's learning rate, where the rest is pretrained
    return optimizer


def _evaluation() -> ConfigDict:
    evaluation = ConfigDict()
    evaluation.every_epochs = 1.0  # epochs between validations, on one view of each example
    evaluation.every_steps = 0  # instead of every_epochs, where not 0
    evaluation.batch_size = 64  # clips (views count), over all devices
    evaluation.temporal_views = 4  # clips of a test video
    evaluation.spatial_views = 3  # crops of each: 1 | 3
    # views mirrored as well, in all combinations of the axes that training mirrors (data.flip and
    # data.volume_augment.flip): 2, 4 or 8 times as many, but not of validation while training
    evaluation.mirror_views = False
    evaluation.average = 'logits'  # what is averaged over the views: logits | softmax
    # standard | medical (besides: AUC, balanced accuracy, calibration, F1; MedMNIST's result file)
    evaluation.report = 'standard'
    return evaluation


def _checkpoint() -> ConfigDict:
    checkpoint = ConfigDict()
    checkpoint.every_steps = 1_000  # steps between checkpoints; one is saved at every validation as well
    checkpoint.keep = (
        2  # latest checkpoints that are kept; where the last is damaged, the one before it is used
    )
    checkpoint.best_metric = ''  # also keep, and use at the end, the best by this validation metric, as top_1
    return checkpoint


def apply_size(config: ConfigDict, text: str) -> ConfigDict:
    """Sets the model's size from a name such as 'B/16x2', and says so in the experiment's name.

    Args:
        config: Changed in place.
        text: `SIZE/PATCHxTUBELET`, as 'L/16x2': layers and widths of L, patches of 16 pixels, tubelets of 2
            frames; `@FRAMES` after it sets the clip's frames, as in the paper's ablation of frames against
            tubelet length at a constant number of tokens: B/16x2@32, B/16x4@64, B/16x8@128.

    Returns:
        The same config.

    Raises:
        ValueError: If the text has another form or the size is unknown.
    """
    match = re.fullmatch(r'(\w+)/([1-9]\d*)x([1-9]\d*)(?:@([1-9]\d*))?', text)
    if not match or match[1] not in SIZES:
        raise ValueError(f'size {text!r} of config {config.name!r}: write {SIZE_FORM}')
    size, patch, tube, frames = match.groups()
    model = config.model
    model.num_layers, model.num_heads, model.width, model.mlp_dim = SIZES[size]
    model.tubelet = (int(tube), int(patch), int(patch))
    if frames:
        config.data.frames = int(frames)
    config.name = f'{config.name}_{text}'.replace('/', '').replace('@', 'f')
    return config


def load(spec: str, overrides: Mapping[str, str] | None = None) -> ConfigDict:
    """Reads an experiment's file and changes single values.

    Args:
        spec: `FILE` or `FILE:ARGUMENT`; the file defines `get_config()` or `get_config(argument)`. Or the
            `config.json` of a workdir.
        overrides: New values as text by key, as `{'model.width': '96', 'data.crop': '(112, 112)'}`.

    Returns:
        The checked config, locked.

    Raises:
        ValueError: One line that names the file and line, or the key, what is wrong and what is allowed.
    """
    if len(spec) > config_values.LONGEST or config_values.CONTROL.search(spec):
        raise ValueError(f'config {config_values.shown(spec)}: no such file')
    # A program is run from here only; a store's `config.json` has no argument.
    remote = paths.is_remote(spec) and spec.endswith('.json')
    path, colon, argument = (spec, '', '') if remote else spec.partition(':')
    if not remote:
        path = str(paths.here(spec if paths.is_remote(spec) else path, '--config'))
    if not paths.path(path).is_file():
        raise ValueError(_no_file(path))
    config = _from_json(path) if path.endswith('.json') else _from_python(path, argument if colon else None)
    return changed(config, overrides or {})


def changed(config: ConfigDict, overrides: Mapping[str, str]) -> ConfigDict:
    """Returns a checked and locked configuration with new values, as text by key; see `load`."""
    known = flatten(default_config())
    check(config)
    for key, text in overrides.items():
        if key not in known:
            raise ValueError(unknown_key(key))
        config.update_from_flattened_dict({key: config_values.parse(key, text, known[key])})
    check(config)
    return config.lock()


def from_values(values: Mapping[str, Any], where: str) -> ConfigDict:
    """Returns the configuration that JSON holds, nested, with the defaults of keys that are newer than it.

    Raises:
        ValueError: If it has a key that there is none of; one line that begins with `where`.
    """
    config = default_config()
    known = flatten(config)
    if not isinstance(values, Mapping):
        raise ValueError(f'{where}: holds {type(values).__name__} instead of a configuration')
    for key, value in flatten(values).items():
        if key not in known:
            raise ValueError(f'{where}: {unknown_key(key)}')
        found = tuple(value) if isinstance(value, list) else value  # JSON knows no tuples
        try:
            check_value(key, found, known[key])
        except ValueError as error:
            raise ValueError(f'{where}: {error}') from None
        config.update_from_flattened_dict({key: found})
    return config


def _from_python(path: str, argument: str | None) -> ConfigDict:
    """Runs a config file."""
    try:
        get_config = runpy.run_path(path).get('get_config')
        if get_config is None:
            raise ValueError(f'{path} defines no get_config(), so it is not a config file')
        config = get_config() if argument is None else get_config(argument)
    except (Exception, SystemExit) as error:
        # What such a file itself objects to names the config; what Python objects to does not.
        if type(error) is ValueError and re.search(r'\bconfig\b', str(error)) and '\n' not in str(error):
            raise
        raise ValueError(_slip_in_file(path, argument or '', error)) from error
    if not isinstance(config, ConfigDict):
        raise ValueError(f'get_config() of {path} returns {config_values.shown(config)} instead of a config')
    return config


def _from_json(path: str) -> ConfigDict:
    """Reads a resolved config, as runs write it."""
    return from_values(json_files.read_object(paths.path(path)), path)


def _no_file(path: str) -> str:
    if paths.is_remote(path):
        return f'config {path!r} does not exist'
    if (inside := pathlib.Path(path) / 'config.json').is_file():
        return f'config {path!r} is a folder; did you mean {inside}?'
    folders = (pathlib.Path(path).parent, pathlib.Path('configs'))
    there = sorted({str(file) for folder in folders for file in folder.glob('*.py')})
    by_name = {pathlib.Path(file).stem: file for file in there}
    near = difflib.get_close_matches(pathlib.Path(path).stem, by_name, n=1)
    return f'config file {path!r} does not exist' + (f'; did you mean {by_name[near[0]]}?' if near else '')


def _slip_in_file(path: str, argument: str, error: BaseException) -> str:
    """Says in one line what went wrong in a config file, and where."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path]
    if isinstance(error, SyntaxError):
        lines, text = [error.lineno], f'invalid syntax: {error.text}'
    else:
        text = str(error)
    if not lines:
        words = ' '.join(text.split())[:300] or type(error).__name__
        return f'{path}: takes no argument, but got {argument!r}' if argument else f'{path}: {words}'
    text = ' '.join(text.split())[:300] or type(error).__name__
    # Both what ml_collections says of a key that is set and of one that is read.
    key = re.search(r'Key "(\w+)"', text) or re.match(r'[\'"\\]+(\w+)', text)
    if key and isinstance(error, AttributeError | KeyError):
        text = unknown_key(key[1])
    return f'{path}, line {lines[-1]}: {text}'


def check(config: ConfigDict) -> None:
    """Compares a config's keys and types with the default's, as assignments can slip past the lock.

    Raises:
        ValueError: Naming the first key that is unknown, missing or of another type.
    """
    known, found = flatten(default_config()), flatten(config)
    for key in found:
        if key not in known:
            raise ValueError(unknown_key(key))
    for key, default in known.items():
        if key not in found:
            raise ValueError(
                f'config.{key} is missing: set values one by one instead of assigning a whole group'
            )
        check_value(key, found[key], default)


def check_value(key: str, value: Any, default: Any) -> None:
    """Refuses a value of another type, or one that no setting can have; one line."""
    if not config_values.alike(value, default):
        raise ValueError(f'config.{key}={config_values.shown(value)}: must be {config_values.kind(default)}')
    if wrong := config_values.flaw(value):
        raise ValueError(f'config.{key}={config_values.shown(value)}: {wrong}')
    for name in (value if isinstance(value, tuple) else (value,)) if key in PARTS_OF_FILE_NAMES else ():
        if name in ('', '.', '..') or len(name) > 150 or re.search(r'[/\\]', name):
            raise ValueError(
                f'config.{key}={config_values.shown(value)}: names files: must be short, without / and \\'
            )


def unknown_key(key: str) -> str:
    """Returns a line that names an unknown key, whole or its last part, and the nearest known one."""
    known = list(flatten(default_config()))
    key = key if key.isprintable() and len(key) <= 100 else repr(key[:100])
    last = key.rpartition('.')[2]
    # The right name in the wrong group is likelier meant than a path that looks alike.
    near = [name for name in known if name.rpartition('.')[2] == last]
    if not near:
        names = difflib.get_close_matches(last, [name.rpartition('.')[2] for name in known], n=1)
        near = [name for name in known if names and name.rpartition('.')[2] == names[0]]
    near = difflib.get_close_matches(key, near or known, n=1, cutoff=0.0)
    return f'config.{key} is not a key; did you mean config.{near[0]}?'


def flatten(config: Mapping[str, Any] | ConfigDict, prefix: str = '') -> dict[str, Any]:
    """Returns `{'model.width': 768, …}`, in order."""
    return dict(_items(config, prefix))


def _items(config: Mapping[str, Any] | ConfigDict, prefix: str) -> Iterator[tuple[str, Any]]:
    for key in config:
        value = config[key]
        if isinstance(value, Mapping | ConfigDict):
            yield from _items(value, f'{prefix}{key}.')
        else:
            yield f'{prefix}{key}', value


def differences(
    one: Mapping[str, Any] | ConfigDict, other: Mapping[str, Any] | ConfigDict
) -> dict[str, tuple[Any, Any]]:
    """Returns the keys whose values differ, with both values; tuples and lists count as equal."""
    flat_one, flat_other = flatten(one), flatten(other)
    keys = [*flat_one, *(key for key in flat_other if key not in flat_one)]
    pairs = {key: (_plain(flat_one.get(key)), _plain(flat_other.get(key))) for key in keys}
    return {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
