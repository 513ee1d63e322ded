"""Image ViTs of others: Google's `.npz`, big_vision, timm, each against what its own implementation recorded."""

import pathlib
import zipfile

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from vivit_jax import create_model, formats
from vivit_jax.formats import big_vision, timm, vit_npz
from vivit_jax.formats.pixels import fold_normalisation
from vivit_jax.formats.weights import Conversion, flat
from vivit_jax.models import embed

GOLDEN = pathlib.Path(__file__).parent / 'golden' / 'formats'
POSITIONS = 'Transformer/posembed_input/pos_embedding'

# Path, kind, classes, classifier, arrays that the model has no place for.
FILES = [
    ('vit_npz_head/ckpt.npz', 'vit_npz', 7, 'token', 0),
    ('vit_npz_head/ckpt_linen.npz', 'vit_npz', 7, 'token', 0),
    ('vit_npz_gap/ckpt.npz', 'vit_npz', 7, 'gap', 0),
    ('vit_npz_gap/ckpt_linen.npz', 'vit_npz', 7, 'gap', 0),
    ('vit_npz_repr/ckpt.npz', 'vit_npz', 7, 'token', 0),
    ('vit_npz_repr/ckpt_linen.npz', 'vit_npz', 7, 'token', 0),
    ('bv_gap_loop/ckpt.npz', 'big_vision', 7, 'gap', 0),
    ('bv_gap_loop_bf16/ckpt.npz', 'big_vision', 7, 'gap', 0),
    ('bv_gap_loop_rep/ckpt.npz', 'big_vision', 7, 'gap', 0),
    ('bv_gap_scan_rep_sincos/ckpt.npz', 'big_vision', 7, 'gap', 0),
    ('bv_map_loop/ckpt.npz', 'big_vision', 0, 'gap', 17 + 2),
    ('bv_map_scan/ckpt.npz', 'big_vision', 0, 'gap', 17 + 2 + 2),
    ('bv_tok_loop/ckpt.npz', 'big_vision', 7, 'token', 2),
    ('bv_tok_scan/ckpt.npz', 'big_vision', 7, 'token', 2),
    ('timm_vit_token', 'timm', 7, 'token', 0),
    ('timm_vit_avg_nocls', 'timm', 7, 'gap', 0),
    ('timm_vit_noembcls', 'timm', 7, 'token', 0),
    ('timm_vit_fcnorm', 'timm', 0, 'token', 4),
    ('timm_vit_map', 'timm', 0, 'gap', 15),
]
CONVERT = {'vit_npz': vit_npz.convert, 'big_vision': big_vision.convert, 'timm': timm.convert}


def arrays_of(name):
    """Arrays of a recorded checkpoint, to be changed at will."""
    folder = GOLDEN / name
    if name.startswith('timm'):
        return load_file(folder / 'model.safetensors')
    with np.load(folder / 'ckpt.npz') as file:
        return dict(file)


def convert(kind, arrays, sidecar=None, num_heads=None, allow_unused=()):
    return CONVERT[kind](Conversion('a file', kind, arrays, allow_unused), sidecar or {}, num_heads)


def run(weights, image, quick_jit):
    model = create_model(weights.num_classes, **weights.model)
    return quick_jit(model.apply)({'params': weights.params}, image[:, None])


def recorded(name):
    with np.load(GOLDEN / name / 'io.npz') as file:
        io = dict(file)
    if 'image_nchw' in io:
        io['image'] = io['image_nchw'].transpose(0, 2, 3, 1)
        io['encoded'] = io['features']
    return io


@pytest.mark.parametrize(
    ('path', 'kind', 'classes', 'classifier', 'unused'), FILES, ids=[row[0] for row in FILES]
)
def test_what_the_original_computed(path, kind, classes, classifier, unused, quick_jit):
    weights = formats.load(GOLDEN / path)
    assert (weights.kind, weights.num_classes, weights.is_image) == (kind, classes, True)
    sincos = path.startswith('bv_gap_scan_rep_sincos')
    assert weights.grid == (None if sincos else (1, 4, 4))
    assert weights.model == {
        'attention': 'spatio_temporal',
        'embedding': 'tubelet',
        'num_layers': 2,
        'num_heads': 4,
        'width': 32,
        'mlp_dim': 64,
        'tubelet': (1, 8, 8),
        'classifier': classifier,
        'position_embedding': 'sinusoidal_2d' if sincos else 'learned',
        'representation_size': 40 if 'repr' in path else 32 if '_rep' in path else 0,
        'activation': 'gelu_exact' if kind == 'timm' else 'gelu_tanh',
        'norm_epsilon': 1e-6,
        'final_norm': path != 'timm_vit_fcnorm',
    }
    io = recorded(path.split('/')[0])
    logits, out = run(weights, io['image'], quick_jit)
    if classes:
        np.testing.assert_allclose(logits, io['logits'], rtol=0, atol=1e-5)
    if 'encoded' in io:
        np.testing.assert_allclose(out['encoded'], io['encoded'], rtol=0, atol=1e-5)
    else:
        assert path.startswith('bv_gap_loop_bf16')
    # Every parameter has an origin, every array of the file a parameter or a reason.
    assert set(weights.origin) == set(flat(weights.params))
    used = {array for origin in weights.origin.values() for array in origin.arrays}
    names = set(arrays_of(path.split('/')[0]))
    assert len(weights.unused) == unused
    assert all(weights.unused.values())
    if 'linen' not in path:
        assert used | set(weights.unused) == names
        assert not used & set(weights.unused)


# --- Positions ---


@pytest.mark.parametrize('path', ['bv_tok_loop/ckpt.npz', 'bv_tok_scan/ckpt.npz', 'timm_vit_noembcls'])
def test_a_cls_token_without_a_position_gets_zeros(path):
    weights = formats.load(GOLDEN / path)
    arrays = arrays_of(path.split('/')[0])
    theirs = next(array for name, array in arrays.items() if name.endswith(('pos_embedding', 'pos_embed')))
    ours = flat(weights.params)[POSITIONS]
    np.testing.assert_array_equal(ours[:, 0], 0)
    np.testing.assert_array_equal(ours[:, 1:], theirs)
    assert weights.origin[POSITIONS].how.startswith('zeros before it for cls')


def test_positions_in_2d_by_hand():
    sin, cos = np.sin, np.cos
    places = [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]
    # Width 12: three frequencies, 1, 1 / 100 and 1 / 10000; columns before rows, sines before cosines.
    frame = [
        [f(p / scale) for p, f in ((w, sin), (w, cos), (h, sin), (h, cos)) for scale in (1, 100, 10_000)]
        for h, w in places
    ]
    np.testing.assert_allclose(embed.sinusoidal_2d((1, 2, 3), 12), frame, rtol=0, atol=1e-7)
    np.testing.assert_allclose(embed.sinusoidal_2d((4, 2, 3), 12), frame * 4, rtol=0, atol=1e-7)
    np.testing.assert_allclose(
        embed.sinusoidal_2d((1, 1, 2), 4), [[0, 1, 0, 1], [sin(1), cos(1), 0, 1]], atol=1e-7
    )


def test_positions_in_2d_are_big_visions():
    io = recorded('bv_gap_scan_rep_sincos')
    table = embed.sinusoidal_2d((1, 4, 4), 32)
    expected = (io['with_posemb'] - io['stem'].reshape(2, 16, 32)).mean(0)
    np.testing.assert_allclose(table, expected, rtol=0, atol=1e-6)


def test_positions_in_2d_are_repeated_over_frames_after_the_cls_token():
    layer = embed.PositionEmbedding('sinusoidal_2d', (3, 2, 2), num_cls=1)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 13, 8)), jnp.float32)
    variables = layer.init({}, x)
    assert not variables
    added = layer.apply({}, x) - x
    np.testing.assert_array_equal(added[:, 0], 0)
    frames = added[:, 1:].reshape(2, 3, 4, 8)
    expected = np.broadcast_to(embed.sinusoidal_2d((1, 2, 2), 8), frames.shape)
    np.testing.assert_allclose(frames, expected, rtol=0, atol=1e-6)


def test_positions_in_2d_need_a_width_that_divides_by_four():
    with pytest.raises(ValueError, match=r'model.width=6: must be a multiple of 4 for .*sinusoidal_2d'):
        embed.sinusoidal_2d((1, 2, 2), 6)


@pytest.mark.parametrize(('kind', 'name'), [('vit_npz', 'vit_npz_head'), ('big_vision', 'bv_gap_loop')])
def test_positions_of_no_square(kind, name):
    arrays = arrays_of(name)
    key = POSITIONS if kind == 'vit_npz' else 'pos_embedding'
    arrays[key] = arrays[key][:, :-1]  # 15 tokens
    assert convert(kind, arrays).grid is None


def test_timm_tells_the_grid_where_it_is_no_square():
    arrays = arrays_of('timm_vit_token')
    sidecar = {'num_heads': 4}
    # 16 positions: of 4 x 4 patches without a slot, unless the image is known to be 3 x 5 patches high and wide.
    arrays['pos_embed'] = arrays['pos_embed'][:, :16]
    assert convert('timm', arrays, sidecar).grid == (1, 4, 4)
    told = convert('timm', arrays, sidecar | {'pretrained_cfg': {'input_size': [3, 24, 40]}})
    assert told.grid == (1, 3, 5)
    assert told.origin[POSITIONS].how == 'copied'
    # A size that these positions are not for is not believed.
    other = convert('timm', arrays, sidecar | {'model_args': {'img_size': 64}})
    assert other.grid == (1, 4, 4)
    arrays['pos_embed'] = arrays['pos_embed'][:, :13]
    unknown = convert('timm', arrays, sidecar)
    assert (unknown.grid, unknown.origin[POSITIONS].how) == (None, 'copied')


# --- Heads, prefixes, towers ---


@pytest.mark.parametrize('prefix', ['params/', 'opt/target/', 'params/img/', 'img/'])
@pytest.mark.parametrize(('kind', 'name'), [('vit_npz', 'vit_npz_repr'), ('big_vision', 'bv_gap_loop')])
def test_prefixes(kind, name, prefix):
    arrays = arrays_of(name)
    plain = flat(convert(kind, arrays).params)
    found = convert(
        kind, {f'{prefix}{key}': array for key, array in arrays.items()} | {'opt/step': np.zeros(())}
    )
    assert found.unused == {'opt/step': "the optimiser's state"}
    for key, array in flat(found.params).items():
        np.testing.assert_array_equal(array, plain[key])


def test_an_unknown_prefix_is_named():
    arrays = {f'student/{key}': array for key, array in arrays_of('bv_gap_loop').items()}
    with pytest.raises(
        ValueError, match=r"at 'student/embedding/kernel', but known prefixes .*'opt/target/'"
    ):
        convert('big_vision', arrays)


def test_weights_without_a_head(quick_jit):
    arrays = {
        name: array for name, array in arrays_of('vit_npz_head').items() if not name.startswith('head/')
    }
    weights = convert('vit_npz', arrays)
    assert weights.num_classes == 0
    io = recorded('vit_npz_head')
    np.testing.assert_allclose(run(weights, io['image'], quick_jit)[0], io['pre_logits'], rtol=0, atol=1e-5)


def test_two_towers():
    weights = formats.load(GOLDEN / 'bv_map_scan' / 'ckpt.npz')
    assert weights.unused['params/txt/Embed_0/embedding'] == 'the text tower'
    assert 'temperature' in weights.unused['params/t']
    assert 'MAP' in weights.unused['params/img/head/kernel']
    arrays = arrays_of('bv_map_scan') | {'params/b': np.zeros(1, np.float32)}
    assert 'bias' in convert('big_vision', arrays).unused['params/b']
    # What pools by a token or average keeps its projection, which is no classifier.
    arrays = {name: array for name, array in arrays.items() if 'MAPHead' not in name}
    weights = convert('big_vision', arrays)
    assert weights.num_classes == 7
    assert any('no classes' in note for note in weights.notes)


def test_blocks_of_a_scan_are_told_apart():
    arrays = arrays_of('bv_tok_scan')
    weights = convert('big_vision', arrays)
    theirs = arrays['params/Transformer/encoderblock/MlpBlock_0/Dense_0/kernel']
    for layer in range(2):
        ours = weights.params['Transformer'][f'encoderblock_{layer}']['MlpBlock_0']['Dense_0']['kernel']
        np.testing.assert_array_equal(ours, theirs[layer])
    name = 'params/Transformer/encoderblock/LayerNorm_0/scale'
    arrays[name] = arrays[name][:1]
    with pytest.raises(ValueError, match=f'{name} has 1 layers, but others have 2'):
        convert('big_vision', arrays)


# --- timm ---

TIMM_FOREIGN = {
    'reg_token': 'register tokens',
    'dist_token': 'distillation token',
    'head_dist.weight': 'distillation token',
    'norm_pre.weight': 'LayerNorm before the encoder',
    'blocks.0.attn.q_norm.weight': 'qk-norm',
    'blocks.0.attn.relative_position_bias_table': 'relative positions',
    'patch_embed.backbone.stem.conv.weight': 'hybrid',
    'blocks.0.mlp.fc1_g.weight': 'gated',
}


@pytest.mark.parametrize('name', TIMM_FOREIGN)
def test_timm_models_that_compute_something_else(name):
    arrays = arrays_of('timm_vit_token') | {name: np.zeros(4, np.float32)}
    with pytest.raises(ValueError, match=rf'{TIMM_FOREIGN[name]}.*{name}.*which ViViT has not'):
        convert('timm', arrays, num_heads=4)


def test_timm_blocks_that_normalise_afterwards_are_told_by_their_name():
    sidecar = {'architecture': 'vit_base_patch16_rpn_224', 'num_heads': 4}
    with pytest.raises(ValueError, match=r'vit_base_patch16_rpn_224 .* normalises after'):
        convert('timm', arrays_of('timm_vit_token'), sidecar)


def test_timm_average_without_the_cls_token(quick_jit):
    arrays = arrays_of('timm_vit_token')
    weights = convert('timm', arrays, {'num_heads': 4, 'global_pool': 'avg'})
    assert weights.num_classes == 0
    assert set(weights.unused) == {'head.weight', 'head.bias'}
    assert all("global_pool='avg' pools the patches without" in reason for reason in weights.unused.values())
    io = recorded('timm_vit_token')
    np.testing.assert_allclose(
        run(weights, io['image'], quick_jit)[1]['encoded'], io['encoded'], rtol=0, atol=1e-5
    )


@pytest.mark.parametrize('names', [('ls1.gamma', 'ls2.gamma'), ('gamma_1', 'gamma_2')])
def test_timm_layer_scale_goes_into_the_branches(names, quick_jit):
    """Dividing the last maps by the scales beforehand gives the recorded model again."""
    arrays, random = dict(arrays_of('timm_vit_token')), np.random.default_rng(0)
    for layer in range(2):
        for name, map_out in zip(names, ('attn.proj', 'mlp.fc2'), strict=True):
            scale = random.uniform(0.5, 2.0, 32).astype(np.float32)
            arrays[f'blocks.{layer}.{name}'] = scale
            arrays[f'blocks.{layer}.{map_out}.weight'] = (
                arrays[f'blocks.{layer}.{map_out}.weight'] / scale[:, None]
            )
            arrays[f'blocks.{layer}.{map_out}.bias'] = arrays[f'blocks.{layer}.{map_out}.bias'] / scale
    weights = convert('timm', arrays, num_heads=4)
    origin = weights.origin['Transformer/encoderblock_1/MlpBlock_0/Dense_1/kernel']
    assert set(origin.arrays) == {'blocks.1.mlp.fc2.weight', f'blocks.1.{names[1]}'}
    assert origin.how == 'transposed, times LayerScale'
    io = recorded('timm_vit_token')
    logits, _ = run(weights, io['image'], quick_jit)
    np.testing.assert_allclose(logits, io['logits'], rtol=0, atol=1e-5)


def test_timm_without_biases():
    arrays = arrays_of('timm_vit_token')
    for name in [name for name in arrays if name.endswith('qkv.bias')] + ['patch_embed.proj.bias']:
        del arrays[name]
    weights = convert('timm', arrays, num_heads=4)
    bias = 'Transformer/encoderblock_1/MultiHeadDotProductAttention_0/key/bias'
    np.testing.assert_array_equal(flat(weights.params)[bias], np.zeros((4, 8)))
    assert 'qkv_bias=False' in weights.origin[bias].how
    np.testing.assert_array_equal(weights.params['embedding']['bias'], np.zeros(32))
    # One bias of several is a damaged file.
    arrays['blocks.0.attn.qkv.bias'] = np.zeros(96, np.float32)
    with pytest.raises(ValueError, match=r"without 'blocks.1.attn.qkv.bias': it is incomplete"):
        convert('timm', arrays, num_heads=4)


def test_timm_number_of_heads():
    arrays = arrays_of('timm_vit_token')
    assert convert('timm', arrays, num_heads=2).model['num_heads'] == 2
    assert convert('timm', arrays, {'model_args': {'num_heads': 8}}).model['num_heads'] == 8
    with pytest.raises(
        ValueError, match=r'--config.init_from.num_heads=N\), for its width 32 one of 1, 2, 4$'
    ):
        convert('timm', arrays)
    with pytest.raises(ValueError, match='num_heads=5 does not divide its width 32'):
        convert('timm', arrays, num_heads=5)
    with pytest.raises(ValueError, match=r'num_heads=2, but its config\.json says num_heads=4'):
        convert('timm', arrays, {'num_heads': 4}, num_heads=2)


def test_timm_number_of_heads_of_a_named_size():
    shapes = {
        'norm1': (192,),
        'norm2': (192,),
        'attn.qkv': (576, 192),
        'attn.proj': (192, 192),
        'mlp.fc1': (768, 192),
        'mlp.fc2': (192, 768),
    }
    weights = {f'blocks.{layer}.{name}': shape for layer in range(12) for name, shape in shapes.items()}
    weights |= {'norm': (192,), 'patch_embed.proj': (192, 3, 16, 16), 'head': (10, 192)}
    arrays = {f'{name}.weight': np.zeros(shape, np.float32) for name, shape in weights.items()}
    arrays |= {f'{name}.bias': np.zeros(shape[0], np.float32) for name, shape in weights.items()}
    arrays |= {'cls_token': np.zeros((1, 1, 192)), 'pos_embed': np.zeros((1, 197, 192))}
    found = convert('timm', arrays)
    assert (found.model['num_heads'], found.grid) == (3, (1, 14, 14))
    assert any('num_heads=3 is assumed' in note and 'size Ti' in note for note in found.notes)


def test_timm_activation():
    arrays = arrays_of('timm_vit_token')
    told = convert('timm', arrays, {'num_heads': 4, 'model_args': {'act_layer': 'gelu_tanh'}})
    assert told.model['activation'] == 'gelu_tanh'
    with pytest.raises(ValueError, match=r"act_layer='quick_gelu' of config.json: known are gelu, gelu_tanh"):
        convert('timm', arrays, {'num_heads': 4, 'model_args': {'act_layer': 'quick_gelu'}})
    siglip = convert('timm', arrays_of('timm_vit_map'), {'num_heads': 4})
    assert siglip.model['activation'] == 'gelu_exact'
    assert any('exact GELU is assumed' in note for note in siglip.notes)


def test_timm_class_names():
    names = ['a', 'b', 'c', 'd', 'e', 'f', 'g']
    sidecar = {'num_heads': 4, 'label_names': names}
    assert convert('timm', arrays_of('timm_vit_token'), sidecar).class_names == tuple(names)
    assert convert('timm', arrays_of('timm_vit_map'), sidecar).class_names == ()


@pytest.mark.parametrize('prefix', ['module.', 'model.', 'visual.trunk.'])
def test_timm_prefixes(prefix):
    arrays = arrays_of('timm_vit_token')
    plain = flat(convert('timm', arrays, num_heads=4).params)
    more = {f'{prefix}{name}': array for name, array in arrays.items()} | {'text.proj': np.zeros((2, 2))}
    weights = convert('timm', more, num_heads=4)
    assert list(weights.unused) == ['text.proj']
    for name, array in flat(weights.params).items():
        np.testing.assert_array_equal(array, plain[name])
    top = prefix.split('.')[0]
    with pytest.raises(ValueError, match=rf'1 arrays have no place in the model \({top}.other\)'):
        convert('timm', more | {f'{top}.other': np.zeros(2)}, num_heads=4)


def test_timm_shapes_are_checked():
    arrays = arrays_of('timm_vit_token')
    name = 'blocks.1.attn.qkv.weight'
    arrays[name] = arrays[name][:-1]
    with pytest.raises(ValueError, match=rf'{name} is \(95, 32\), which for width 32 must be \(96, 32\)$'):
        convert('timm', arrays, num_heads=4)


def test_timm_of_pytorch(tmp_path, quick_jit):
    torch = pytest.importorskip('torch', reason='reads a file of PyTorch, which is not installed')
    tensors = {name: torch.from_numpy(array) for name, array in arrays_of('timm_vit_token').items()}
    torch.save({'state_dict': tensors, 'epoch': 3}, tmp_path / 'model.pth')
    weights = formats.load(tmp_path / 'model.pth', num_heads=4)
    io = recorded('timm_vit_token')
    np.testing.assert_allclose(run(weights, io['image'], quick_jit)[0], io['logits'], rtol=0, atol=1e-5)


# --- Pixels ---

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


@pytest.mark.parametrize('place', ['pretrained_cfg', None])
def test_normalisation_of_pixels_becomes_part_of_the_embedding(place, quick_jit):
    arrays = arrays_of('timm_vit_token')
    told = {'mean': MEAN, 'std': STD}
    ours = convert('timm', arrays, {'num_heads': 4, **({place: told} if place else told)})
    theirs = convert('timm', arrays, {'num_heads': 4, 'mean': [0.5] * 3, 'std': [0.5] * 3})
    pixels = np.random.default_rng(0).uniform(size=(2, 32, 32, 3))
    logits, out = run(ours, (2 * pixels - 1).astype(np.float32), quick_jit)
    expected, wanted = run(theirs, ((pixels - MEAN) / STD).astype(np.float32), quick_jit)
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-5)
    np.testing.assert_allclose(out['tokens'], wanted['tokens'], rtol=0, atol=1e-5)
    assert np.abs(ours.params['embedding']['kernel'] - theirs.params['embedding']['kernel']).max() > 0.1
    assert 'mean 0.485, 0.456, 0.406' in ours.origin['embedding/bias'].how
    assert any('std 0.229, 0.224, 0.225' in note for note in ours.notes)


def test_normalisation_to_our_own_range_changes_nothing():
    arrays = arrays_of('timm_vit_token')
    untold = convert('timm', arrays, {'num_heads': 4})
    told = convert('timm', arrays, {'num_heads': 4, 'pretrained_cfg': {'mean': [0.5] * 3, 'std': [0.5] * 3}})
    assert [note for note in untold.notes if '[-1, 1] is assumed' in note]
    assert not told.notes
    np.testing.assert_array_equal(told.params['embedding']['kernel'], untold.params['embedding']['kernel'])
    assert told.origin == untold.origin


def test_normalisation_of_clips():
    random = np.random.default_rng(0)
    kernel, bias = random.normal(size=(2, 4, 4, 1, 8)), random.normal(size=8)
    conversion = Conversion('a file', 'hf_vivit', {'kernel': kernel, 'bias': bias})
    conversion.take('kernel', 'embedding/kernel')
    conversion.take('bias', 'embedding/bias')
    fold_normalisation(conversion, [0.3], [0.2])
    pixels = random.uniform(size=(2, 4, 4, 1))
    found = np.einsum('thwc,thwcd->d', 2 * pixels - 1, conversion.made('embedding/kernel'))
    expected = np.einsum('thwc,thwcd->d', (pixels - 0.3) / 0.2, kernel) + bias
    np.testing.assert_allclose(found + conversion.made('embedding/bias'), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ('mean', 'std', 'message'),
    [
        ([0.5], [0.5] * 3, r'mean=\[0.5\]: must be 3 numbers'),
        ([0.5] * 3, [0.5, 0.5, float('nan')], r'std=\[.*nan\]: must be 3 numbers'),
        ([0.5] * 3, [0.5, 0.0, 0.5], r'std=\[0.5, 0.0, 0.5\]: must be above 0'),
    ],
)
def test_normalisations_that_cannot_be(mean, std, message):
    with pytest.raises(ValueError, match=message):
        convert('timm', arrays_of('timm_vit_token'), {'num_heads': 4, 'mean': mean, 'std': std})


# --- What is wrong with a file ---

SOME = [('vit_npz', 'vit_npz_head'), ('big_vision', 'bv_tok_scan'), ('timm', 'timm_vit_token')]


@pytest.mark.parametrize(('kind', 'name'), SOME)
def test_foreign_arrays_are_named_and_may_be_allowed(kind, name, tmp_path):
    arrays = arrays_of(name) | {'adapter_scale': np.ones(3, np.float32)}
    if kind == 'timm':
        path = tmp_path / 'model.safetensors'
        save_file(arrays, path)
    else:
        path = tmp_path / 'ckpt.npz'
        np.savez(path, **arrays)
    message = r'1 arrays have no place in the model \(adapter_scale\)'
    with pytest.raises(ValueError, match=message):
        formats.load(path, num_heads=4)
    with pytest.raises(ValueError, match=message):
        formats.load(path, num_heads=4, allow_unused=('*head*',))
    weights = formats.load(path, num_heads=4, allow_unused=('adapter*',))
    assert weights.unused['adapter_scale'] == 'allowed by name'


@pytest.mark.parametrize(
    ('kind', 'name', 'array'),
    [
        ('vit_npz', 'vit_npz_head', 'Transformer/encoderblock_0/MlpBlock_3/Dense_1/bias'),
        ('vit_npz', 'vit_npz_head', 'head/bias'),
        ('big_vision', 'bv_gap_loop', 'Transformer/encoderblock_1/LayerNorm_0/scale'),
        ('big_vision', 'bv_tok_scan', 'params/Transformer/encoderblock/LayerNorm_1/bias'),
        ('timm', 'timm_vit_token', 'blocks.0.norm2.weight'),
        ('timm', 'timm_vit_token', 'pos_embed'),
    ],
)
def test_missing_arrays_are_named(kind, name, array):
    arrays = arrays_of(name)
    del arrays[array]
    with pytest.raises(ValueError, match=f"a {kind} file without '{array}': it is incomplete"):
        convert(kind, arrays, num_heads=4)


@pytest.mark.parametrize(('kind', 'name'), SOME)
def test_missing_layers_are_named(kind, name):
    if kind == 'big_vision':
        name = 'bv_gap_loop'
    arrays = {
        key: array
        for key, array in arrays_of(name).items()
        if 'block_0/' not in key and 'blocks.0.' not in key
    }
    named = rf'is a {kind} file without .*block_0/|has 1 layers, but none with the number 0: it is incomplete'
    with pytest.raises(ValueError, match=f'a file: ({named})'):
        convert(kind, arrays, num_heads=4)


@pytest.mark.parametrize(('kind', 'name'), SOME[:2])
def test_a_wrong_number_of_heads(kind, name):
    assert formats.load(GOLDEN / name / 'ckpt.npz', num_heads=4).model['num_heads'] == 4
    with pytest.raises(ValueError, match=r'num_heads=8, but .*query/kernel has 4 heads'):
        formats.load(GOLDEN / name / 'ckpt.npz', num_heads=8)


def test_a_wrong_number_of_heads_of_timm():
    assert formats.load(GOLDEN / 'timm_vit_token', num_heads=4).model['num_heads'] == 4
    with pytest.raises(ValueError, match=r'num_heads=8, but its config\.json says num_heads=4'):
        formats.load(GOLDEN / 'timm_vit_token', num_heads=8)


@pytest.mark.parametrize(('path', 'kind'), [(row[0], row[1]) for row in FILES], ids=[row[0] for row in FILES])
def test_another_kind_than_asked_for(path, kind):
    other = {'vit_npz': 'big_vision', 'big_vision': 'timm', 'timm': 'vit_npz'}[kind]
    with pytest.raises(ValueError, match=rf'is {kind}, not {other}$'):
        formats.load(GOLDEN / path, kind=other)


def test_hybrids_and_sequences_are_refused():
    arrays = arrays_of('vit_npz_head')
    with pytest.raises(ValueError, match='is a hybrid'):
        convert('vit_npz', arrays | {'conv_root/kernel': np.zeros((7, 7, 3, 8), np.float32)})
    arrays = arrays_of('bv_gap_loop')
    arrays['embedding/kernel'] = arrays['embedding/kernel'].reshape(-1, 32)
    with pytest.raises(ValueError, match=r'embedding/kernel is \(192, 32\), not that of image patches'):
        convert('big_vision', arrays)


@pytest.mark.parametrize('share', [0.3, 0.999])
def test_truncated_files(share, tmp_path):
    whole = (GOLDEN / 'vit_npz_head' / 'ckpt.npz').read_bytes()
    path = tmp_path / 'ckpt.npz'
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(ValueError, match='truncated'):
        formats.load(path)


def test_a_damaged_array_is_named(tmp_path):
    path = tmp_path / 'ckpt.npz'
    name = 'Transformer/encoderblock_1/MlpBlock_3/Dense_0/kernel'
    with (
        zipfile.ZipFile(path, 'w') as target,
        zipfile.ZipFile(GOLDEN / 'vit_npz_head' / 'ckpt.npz') as source,
    ):
        for entry in source.namelist():
            content = source.read(entry)
            target.writestr(entry, content[:-100] if entry == f'{name}.npy' else content)
    with pytest.raises(ValueError, match=f'{name} cannot be read'):
        formats.load(path)


def test_pickled_objects_are_refused(tmp_path):
    """What would run on loading is never loaded."""
    path = tmp_path / 'ckpt.npz'
    touched = tmp_path / 'touched'

    class Payload:
        def __reduce__(self):
            return touched.touch, ()

    arrays = arrays_of('vit_npz_head')
    arrays['head/bias'] = np.array([Payload()], dtype=object)
    np.savez(path, **arrays)
    with pytest.raises(ValueError, match=r'(?i)pickle'):
        formats.load(path)
    assert not touched.exists()
