"""Every experiment's file: it loads, its model builds at every size, it says the paper's numbers; slips are told."""

import ast
import dataclasses
import functools
import inspect
import io
import re
import runpy
import tokenize
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vivit_jax import config as config_module
from vivit_jax import create_model, default_config, experiment
from vivit_jax.config import SIZES, check, flatten, load
from vivit_jax.data.medmnist import SETS
from vivit_jax.data.volume_transforms import volume_transforms
from vivit_jax.models.embed import token_grid
from vivit_jax.models.vivit import ViViT

ROOT = Path(__file__).parent.parent
FILES = {path.stem: path for path in sorted((ROOT / 'configs').glob('*.py'))}
TAKES_SIZE = [
    name
    for name, path in FILES.items()
    if 'size' in inspect.signature(runpy.run_path(str(path))['get_config']).parameters
]


def load_named(name, argument='', overrides=None):
    return load(f'{FILES[name]}:{argument}' if argument else str(FILES[name]), overrides)


# --- The files ---


def test_the_promised_files_are_there():
    kinetics = {f'kinetics400_{model}' for model in ('spacetime', 'fe', 'fsa', 'fdp')}
    others = {
        'kinetics600_fe',
        'moments_in_time_fe',
        'epic_kitchens_fe',
        'ssv2_fe',
        'organmnist3d',
        'medmnist3d',
        'moving_digits',
        'finetune',
        'my_videos',
    }
    assert set(FILES) >= kinetics | others | {'base', 'kinetics400_timesformer'}
    assert set(TAKES_SIZE) >= kinetics | others - {'moving_digits', 'organmnist3d', 'medmnist3d'}


def with_sizes():
    for name in FILES:
        yield name, ''
        if name in TAKES_SIZE:
            # Patches that divide the file's own clips.
            _, height, _ = tubelet = load_named(name).model.tubelet
            yield from ((name, f'{size}/{height}x{tubelet[0]}') for size in SIZES)


@pytest.mark.parametrize(('name', 'argument'), [*with_sizes(), ('kinetics400_fe', 'H/14x2')])
def test_models_build_at_every_size(unchecked, name, argument):
    config = load_named(name, argument)
    check(config)
    assert config.is_locked
    if argument:
        size, patch, tube = re.split('[/x]', argument)
        model = config.model
        assert (model.num_layers, model.num_heads, model.width, model.mlp_dim) == SIZES[size]
        assert model.tubelet == (int(tube), int(patch), int(patch))
        assert config.name == f'{name}_{size}{patch}x{tube}'
    if config.model.attention == 'factorised_dot_product' and config.model.num_heads % 2:
        # Ti has three heads, and half of them would be needed for either axis.
        with pytest.raises(ValueError, match=r'model\.num_heads=3 is odd'):
            create_model(1, **config.model)
        return
    classes = sum(config.data.num_classes) or 7  # base leaves them to the data
    model, clip = create_model(classes, **config.model), experiment.clip_shape(config)
    if argument:
        # Files share their trunks, which are built once: neither classes nor stochastic depth change their shapes.
        (pre_logits, _), _ = built(model.clone(num_classes=0, drop_path_rate=0.0), clip)
        assert pre_logits == jax.ShapeDtypeStruct((2, config.model.width), jnp.float32)
    else:
        (logits, out), variables = built(model, clip)
        assert logits == jax.ShapeDtypeStruct((2, classes), jnp.float32)
        video = jax.ShapeDtypeStruct((2, *clip), jnp.float32)
        assert jax.eval_shape(model.apply, variables, video) == (logits, out)


@functools.cache
def built(model, clip):
    """Returns the shapes of what a model gives for two clips, and of its parameters."""
    return jax.eval_shape(
        model.init_with_output, jax.random.key(0), jax.ShapeDtypeStruct((2, *clip), jnp.float32)
    )


@pytest.mark.parametrize('name', FILES)
def test_a_file_tells_its_name_and_command(name):
    docstring = ast.get_docstring(ast.parse(FILES[name].read_text()))
    if name != 'base':
        assert load_named(name).name.startswith(name)
        assert f'python -m vivit_jax.main --config=configs/{name}.py' in docstring
        assert 'Hardware and time: ' in docstring


def test_frames_against_tubelet_length_at_constant_tokens():
    for argument, frames in {'B/16x2@32': 32, 'B/16x4@64': 64, 'B/16x8@128': 128}.items():
        config = load_named('kinetics400_fe', argument)
        clip = experiment.clip_shape(config)
        assert clip == (frames, 224, 224, 3)
        assert token_grid(clip[:3], config.model.tubelet) == (16, 14, 14)
    assert config.name == 'kinetics400_fe_B16x8f128'


# The paper's section 4.1 and its table of hyperparameters.
EVERYWHERE = {
    'model.kernel_init': 'central_frame',
    'data.frames': 32,
    'data.stride': 2,
    'data.crop': (224, 224),
    'data.flip': 0.5,
    'data.scale_jitter': (0.9, 1.33),
    'data.heads': ('label',),
    'training.batch_size': 64,
    'training.loss': 'softmax',
    'optimizer.name': 'momentum',
    'optimizer.momentum': 0.9,
    'optimizer.schedule': 'cosine',
    'optimizer.warmup_epochs': 2.5,
    'optimizer.warmup_steps': 0,
    'optimizer.max_grad_norm': 1.0,
    'evaluation.temporal_views': 4,
    'evaluation.spatial_views': 3,
}
LIGHT = {
    'data.colour_jitter': 0.8,
    'data.randaugment_layers': 0,
    'model.drop_path_rate': 0.0,
    'training.label_smoothing': 0.0,
    'training.mixup_alpha': 0.0,
}
KINETICS400 = LIGHT | {'data.num_classes': (400,), 'optimizer.learning_rate': 0.1, 'training.epochs': 30.0}
FE = {'model.attention': 'factorised_encoder', 'model.temporal_layers': 4, 'model.classifier': 'token'}
L16X2 = FE | {'model.num_layers': 24, 'model.width': 1024, 'model.tubelet': (2, 16, 16)}
PAPER = {
    'kinetics400_spacetime': KINETICS400
    | {'model.attention': 'spatio_temporal', 'model.classifier': 'token'},
    'kinetics400_fe': KINETICS400 | FE,
    'kinetics400_fsa': KINETICS400
    | {'model.attention': 'factorised_self_attention', 'model.classifier': 'gap'},
    'kinetics400_fdp': KINETICS400 | {'model.attention': 'factorised_dot_product', 'model.classifier': 'gap'},
    'kinetics600_fe': KINETICS400 | L16X2 | {'data.num_classes': (600,)},
    'moments_in_time_fe': LIGHT
    | L16X2
    | {'data.num_classes': (339,), 'optimizer.learning_rate': 0.25, 'training.epochs': 10.0},
    'epic_kitchens_fe': L16X2
    | {
        'data.heads': ('noun', 'verb'),
        'data.num_classes': (300, 97),
        'data.stride': 1,
        'data.colour_jitter': 0.0,
        'data.randaugment_layers': 2,
        'data.randaugment_magnitude': 15.0,
        'model.drop_path_rate': 0.2,
        'optimizer.learning_rate': 0.5,
        'training.epochs': 50.0,
        'training.label_smoothing': 0.2,
        'training.mixup_alpha': 0.1,
        'evaluation.spatial_views': 1,
    },
    'ssv2_fe': L16X2
    | {
        'data.num_classes': (174,),
        'data.colour_jitter': 0.0,
        'data.randaugment_layers': 2,
        'data.randaugment_magnitude': 20.0,
        'model.drop_path_rate': 0.3,
        'optimizer.learning_rate': 0.5,
        'training.epochs': 35.0,
        'training.label_smoothing': 0.3,
        'training.mixup_alpha': 0.3,
    },
}


@pytest.mark.parametrize('name', PAPER)
def test_the_papers_values(name):
    found = flatten(load_named(name))
    expected = EVERYWHERE | PAPER[name]
    assert {key: found[key] for key in expected} == expected


# TimeSformer's variants, as its repository's configs (TimeSformer_divST_{8x32_224, 16x16_448, 96x4_224}.yaml).
@pytest.mark.parametrize(
    ('argument', 'frames', 'stride', 'pixels', 'short_sides'),
    [('', 8, 32, 224, (256, 320)), ('HR', 16, 16, 448, (448, 512)), ('L', 96, 4, 224, (256, 320))],
)
def test_timesformers_values(unchecked, argument, frames, stride, pixels, short_sides):
    config = load_named('kinetics400_timesformer', argument)
    check(config)
    data = config.data
    assert experiment.clip_shape(config) == (frames, pixels, pixels, 3)
    assert data.stride == stride
    assert [data.short_side * factor for factor in data.scale_jitter] == pytest.approx(short_sides)
    model = create_model(400, **config.model)
    assert token_grid((frames, pixels, pixels), model.tubelet) == (frames, pixels // 16, pixels // 16)
    (logits, _), _ = built(model, experiment.clip_shape(config))
    assert logits == jax.ShapeDtypeStruct((2, 400), jnp.float32)
    # 1,000 steps an epoch.
    plan = experiment.plan(config, 1_000 * config.training.batch_size)
    _, schedule = experiment.make_optimizer(config, plan)
    rates = [schedule(step) for step in (0, 10_999, 11_000, 13_999, 14_000, 14_999)]
    np.testing.assert_allclose(rates, [5e-3, 5e-3, 5e-4, 5e-4, 5e-5, 5e-5], rtol=1e-6)
    assert plan.total_steps == 15_000


def test_timesformer_has_no_other_variants():
    with pytest.raises(ValueError, match=r"variant 'XL' of config 'kinetics400_timesformer': .*, HR, L"):
        load_named('kinetics400_timesformer', 'XL')


# Voxels along an axis of a volume, and of a token.
@pytest.mark.parametrize(('size', 'voxels', 'token'), [('', 28, 4), ('/28', 28, 4), ('/64', 64, 8)])
@pytest.mark.parametrize('name', SETS)
def test_medmnists_sets(name, size, voxels, token):
    config = load_named('medmnist3d', name + size)
    check(config)
    assert (config.data.source, config.data.medmnist.name) == ('medmnist', name)
    assert config.data.medmnist.size == voxels
    assert config.data.num_classes == (len(SETS[name].class_names),)
    assert experiment.clip_shape(config) == (voxels, voxels, voxels, 1)
    assert config.model.tubelet == (token, token, token)
    assert (config.checkpoint.best_metric, config.evaluation.report) == ('auc', 'medical')
    # Mirrored, the organs of one side are those of the other.
    assert any(config.data.volume_augment.flip) == (name != 'organ')
    assert config.evaluation.mirror_views == (name != 'organ')
    assert config.data.flip == 0.0
    assert volume_transforms(size=(voxels, voxels, voxels), videos=False, **config.data.volume_augment)


@pytest.mark.parametrize('which', ['brain', 'organ/32', 'organ/', 'organ/large', '/64'])
def test_medmnist_has_no_other_sets(which):
    message = (
        f"set '{which}' of config 'medmnist3d': write SET or SET/SIZE; sets: organ, nodule, adrenal, fracture, "
        'vessel, synapse; sizes: 28, 64'
    )
    with pytest.raises(ValueError, match=rf'\A{re.escape(message)}\Z'):
        load_named('medmnist3d', which)


def test_the_published_organs_have_two_losses():
    with pytest.raises(
        ValueError, match=r"variant 'B/16x2' of config 'organmnist3d': choose published or publ"
    ):
        load_named('organmnist3d', 'B/16x2')


# --- The default configuration ---


def test_the_default_is_locked_and_passes_its_own_check():
    config = default_config()
    assert config.is_locked
    check(config)
    with pytest.raises(AttributeError):
        config.model.depth = 3


def test_the_models_defaults_are_the_configurations():
    fields = {field.name: field.default for field in dataclasses.fields(ViViT)}
    for name in ('num_classes', 'parent', 'name'):  # the first has no default, the others are flax's
        del fields[name]
    assert fields == default_config().model.to_dict()


def assigned_keys(source):
    """The keys that config.py assigns, with the first and last line of each assignment; groups are left out."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Attribute):
            key = ast.unparse(node.targets[0]).removeprefix('config.')
            if key in flatten(default_config()):
                yield key, node.lineno, node.end_lineno


def test_every_key_has_a_comment():
    keys = {}
    for file in ('config.py', 'config_data.py'):
        keys |= commented_keys(Path(config_module.__file__).with_name(file).read_text())
    assert set(keys) == set(flatten(default_config()))
    assert not [key for key, commented in keys.items() if not commented], (
        'keys without a comment on their line or one of its own above'
    )


def commented_keys(source):
    """Tells of every key that is set in a file whether there is a comment where it is set first."""
    comments, alone = set(), set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            comments.add(token.start[0])
            if token.line.strip().startswith('#'):
                alone.add(token.start[0])
    keys: dict = {}
    for key, *lines in assigned_keys(source):
        keys.setdefault(key, lines)
    return {
        key: first - 1 in alone or not comments.isdisjoint(range(first, last + 1))
        for key, (first, last) in keys.items()
    }


# --- Slips in a file ---

FILE = """from ml_collections import ConfigDict
from vivit_jax.config import default_config


def get_config():
    config = default_config()
    {line}
    return config
"""


@pytest.fixture
def fails(tmp_path):
    """Loads a file whose seventh line is the one given; returns its path and the one line of the error."""

    def load_line(line, text=FILE):
        path = tmp_path / 'mine.py'
        path.write_text(text.replace('{line}', line))
        with pytest.raises(ValueError) as caught:  # noqa: PT011 (what it says is checked by the caller)
            load(str(path))
        assert '\n' not in str(caught.value)
        return str(path), str(caught.value)

    return load_line


@pytest.mark.parametrize(
    ('line', 'key', 'nearest'),
    [
        ('config.model.nun_heads = 3', 'nun_heads', 'config.model.num_heads'),
        ("config.model['wdith'] = 3", 'wdith', 'config.model.width'),
        ('config.trainning = 3', 'trainning', None),
        ('config.training.learning_rate = 0.5', 'learning_rate', 'config.optimizer.learning_rate'),
        ('config.model.mlp_dim = 4 * config.model.widht', 'widht', 'config.model.width'),
        ("config.model.update({'drop_path_rat': 0.1})", 'drop_path_rat', 'config.model.drop_path_rate'),
        ("config.data.medmnist.nme = 'organ'", 'nme', None),
    ],
)
def test_an_unknown_key_in_a_file_is_named_with_the_nearest(fails, line, key, nearest):
    path, message = fails(line)
    assert message.startswith(f'{path}, line 7: ')
    assert re.search(rf'config\.(\w+\.)*{key} is not a key', message)
    assert 'did you mean config.' in message
    if nearest:
        assert f'did you mean {nearest}?' in message


@pytest.mark.parametrize(
    ('line', 'told'),
    [
        # Past the lock.
        ("config.model = {'width': 96}", ['config.model.', 'is missing', 'one by one']),
        ("config.model = ConfigDict({'width': 96})", ['config.model.', 'is missing', 'one by one']),
        (
            "config.model = {**config.model, 'wdith': 96}",
            ['config.model.wdith is not a key', 'config.model.width?'],
        ),
        (
            'config.unlock(); config.model.wdith = 96',
            ['config.model.wdith is not a key', 'config.model.width?'],
        ),
        ('config.unlock(); del config.model.width', ['config.model.width is missing']),
    ],
)
def test_a_group_assigned_past_the_lock(fails, line, told):
    _, message = fails(line)
    for word in told:
        assert word in message


@pytest.mark.parametrize(
    ('line', 'told'),
    [
        ("config.model.num_heads = 'three'", ['line 7', 'num_heads', 'three', 'int']),
        ('config.model.num_heads = 3.5', ['line 7', 'num_heads', '3.5', 'int']),
        ('config.model.attention = 3', ['line 7', 'attention', '3', 'str']),
        ("config.model.update({'tubelet': 3})", ['line 7', 'tubelet', '3', 'tuple']),
        ("config.optimizer.learning_rate = 'fast'", ['line 7', 'learning_rate', 'fast', 'float']),
        ("config.optimizer = 'adam'", ['line 7', 'optimizer', 'adam']),
    ],
)
def test_a_wrong_type_in_a_file(fails, line, told):
    _, message = fails(line)
    for word in told:
        assert word in message


@pytest.mark.parametrize(
    'line',
    [
        'config.model.width = widht',
        'config.model.width = = 96',
        'config.model.width = 96 // 0',
        'import ml_colections',
    ],
)
def test_a_broken_file_is_told_in_one_line(fails, line):
    path, message = fails(line)
    assert path in message
    assert 'line 7' in message


def test_a_file_that_forgets_to_return(fails):
    path, message = fails('', FILE.replace('return config', 'pass'))
    assert path in message


def test_a_file_without_get_config(fails):
    path, message = fails('', 'config = 3\n')
    assert message == f'{path} defines no get_config(), so it is not a config file'


def test_a_file_that_does_not_exist():
    with pytest.raises(
        ValueError, match=r'kinetic400_fe.py\' does not exist; did you mean .*kinetics400_fe.py\?\Z'
    ):
        load(str(ROOT / 'configs' / 'kinetic400_fe.py'))
    with pytest.raises(ValueError, match=r"\Aconfig file 'nowhere/mine.py' does not exist\Z"):
        load('nowhere/mine.py')


@pytest.mark.parametrize(
    'size', ['X/16x2', 'b/16x2', 'B16x2', 'B/16', 'B/0x2', 'B/16x2@', 'B/16x2@0', 'B/16x2 ', '']
)
def test_an_unknown_size_is_told_with_the_form(size):
    with pytest.raises(ValueError, match=r'\Asize ') as caught:
        load(f'{FILES["kinetics400_fe"]}:{size}')
    assert str(caught.value) == (
        f"size {size!r} of config 'kinetics400_fe': write SIZE/PATCHxTUBELET[@FRAMES], as B/16x2 or L/14x4@64; "
        'sizes: Ti, S, B, L, H'
    )


def test_a_file_without_sizes_takes_no_argument():
    with pytest.raises(ValueError, match=r"\A\S*moving_digits.py: takes no argument, but got 'B/16x2'\Z"):
        load_named('moving_digits', 'B/16x2')


# --- Overrides ---


@pytest.mark.parametrize(
    ('key', 'text', 'value'),
    [
        ('model.width', '96', 96),
        ('model.attention', 'spatio_temporal', 'spatio_temporal'),
        ('model.final_norm', 'false', False),
        ('model.final_norm', 'True', True),
        ('model.final_norm', '0', False),
        ('model.norm_epsilon', '1e-12', 1e-12),
        ('model.tubelet', '(4, 8, 8)', (4, 8, 8)),
        ('model.tubelet', '4,8,8', (4, 8, 8)),
        ('model.tubelet', '[4, 8, 8]', (4, 8, 8)),
        ('data.num_classes', '400', (400,)),
        ('data.num_classes', '()', ()),
        ('data.heads', 'noun,verb', ('noun', 'verb')),
        ('data.heads', "('noun', 'verb')", ('noun', 'verb')),
        ('data.scale_jitter', '1,1', (1, 1)),
        ('data.root', '/data/k400', '/data/k400'),
        ('data.root', '400', '400'),
        ('training.epochs', '5', 5.0),
        ('optimizer.learning_rate', '.5', 0.5),
        ('seed', '7', 7),
        ('name', 'mine', 'mine'),
        ('data.moving_digits.train_size', '64', 64),
    ],
)
def test_overrides_become_values_of_the_keys_type(key, text, value):
    config = load_named('base', overrides={key: text})
    found = flatten(config)[key]
    assert found == value
    assert type(found) is type(value)
    before = flatten(default_config())
    assert {other: v for other, v in flatten(config).items() if other != key} == {
        other: v for other, v in before.items() if other != key
    }
    assert config.is_locked


@pytest.mark.parametrize(
    ('key', 'text', 'told'),
    [
        ('model.nun_heads', '3', 'config.model.nun_heads is not a key; did you mean config.model.num_heads?'),
        ('training.learning_rate', '3', 'did you mean config.optimizer.learning_rate?'),
        ('learning_rate', '3', 'did you mean config.optimizer.learning_rate?'),
        ('modle.width', '3', 'did you mean config.model.width?'),
        ('model', '3', 'config.model is not a key; did you mean config.model.'),
        ('model.width', 'wide', "config.model.width='wide': must be int, as 768"),
        ('model.width', '7.5', "config.model.width='7.5': must be int, as 768"),
        ('model.width', '', "config.model.width='': must be int, as 768"),
        ('model.final_norm', 'maybe', "config.model.final_norm='maybe': must be true or false, as True"),
        ('model.tubelet', 'two', "config.model.tubelet='two': must be 3 values, as (2, 16, 16)"),
        ('model.tubelet', '(2, 16', "config.model.tubelet='(2, 16': must be 3 values, as (2, 16, 16)"),
        ('model.tubelet', '', "config.model.tubelet='': must be 3 values, as (2, 16, 16)"),
        ('model.tubelet', '{[]}', "config.model.tubelet='{[]}': must be 3 values, as (2, 16, 16)"),
        ('data.crop', '112', "config.data.crop='112'"),
        ('data.crop', '(112.5, 112)', "config.data.crop='(112.5, 112)'"),
        ('optimizer.learning_rate', 'fast', "config.optimizer.learning_rate='fast': must be float, as 0.1"),
    ],
)
def test_overrides_that_cannot_be(key, text, told):
    with pytest.raises(ValueError, match=re.escape(told)) as caught:
        load_named('base', overrides={key: text})
    assert '\n' not in str(caught.value)


def test_check_takes_no_wrong_type():
    config = default_config()
    with config.ignore_type():
        config.model.width = 'wide'
    with pytest.raises(ValueError, match=r"\Aconfig.model.width='wide': must be int, as 768\Z"):
        check(config)
