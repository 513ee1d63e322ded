"""Images into the other patterns of attention, and positions that are tables of places and of times."""

import jax
import numpy as np
import pytest
from test_pretrained import TINY, after_three_steps, image_vit, video_model, weights_of

from vivit_jax import pretrained
from vivit_jax.formats.weights import flat, nested
from vivit_jax.inflation import resize
from vivit_jax.models.embed import sinusoidal_2d
from vivit_jax.models.patterns import ATTENTIONS

POSITIONS = 'Transformer/posembed_input/pos_embedding'
TIMES = 'Transformer/posembed_input/time_embedding'
DIVIDED = {'attention': 'divided', 'classifier': 'token', 'position_embedding': 'learned_space_time'}
NEW = {'divided': ['time'], 'axial': ['time', 'height'], 'local_global': ['window']}
SPACE = {'divided': 'space', 'axial': 'width', 'local_global': 'grid'}


def fresh_times(params):
    """Random parameters, but with times at zero, as they start."""
    return nested({name: np.zeros_like(a) if name == TIMES else a for name, a in flat(params).items()})


@pytest.mark.filterwarnings('ignore:temporal_attention')
@pytest.mark.parametrize('how', ['zero_output', 'zero', 'copy'])
@pytest.mark.parametrize('positions', ['learned', 'learned_space_time'])
def test_divided_attention_starts_with_the_image_vits_features_in_every_frame(
    random_params, quick_jit, how, positions
):
    vit, weights = image_vit(random_params)
    model, params = video_model(random_params, **{**DIVIDED, 'position_embedding': positions})
    params, _ = pretrained.initialise(fresh_times(params), weights, temporal_attention=how)
    image = np.random.default_rng(1).uniform(-1, 1, (2, 1, 16, 16, 3)).astype(np.float32)
    _, of_image = quick_jit(vit.apply)({'params': weights.params}, image)
    _, of_clip = quick_jit(model.apply)({'params': params}, np.repeat(image, 8, axis=1))
    np.testing.assert_allclose(of_clip['encoded'][:, 0], of_image['encoded'][:, 0], rtol=0, atol=1e-5)
    for frame in of_clip['encoded'][:, 1:].reshape(2, 4, 16, 16).swapaxes(0, 1):
        np.testing.assert_allclose(frame, of_image['encoded'][:, 1:], rtol=0, atol=1e-5)


@pytest.mark.filterwarnings('ignore:temporal_attention')
@pytest.mark.parametrize(
    ('how', 'moves'), [('zero_output', True), ('copy', True), ('fresh', True), ('zero', False)]
)
def test_divided_attention_learns_over_time(random_params, quick_jit, how, moves):
    _, weights = image_vit(random_params)
    model, params = video_model(random_params, **DIVIDED)
    params, _ = pretrained.initialise(params, weights, temporal_attention=how)
    before, after = flat(params), flat(after_three_steps(model, params, quick_jit))
    kernels = [name for name in before if '_time/' in name and 'kernel' in name]
    assert len(kernels) == 10
    for name in kernels:
        assert bool(np.any(before[name] != np.asarray(after[name]))) == moves, name


def test_what_each_way_means_for_divided_attention(random_params):
    _, weights = image_vit(random_params)
    _, params = video_model(random_params, **DIVIDED)
    before, image = flat(params), flat(weights.params)
    block = 'Transformer/encoderblock_1'
    time, projection = f'{block}/MultiHeadDotProductAttention_time', f'{block}/projection_time/kernel'
    actions = {}
    for how in ('zero_output', 'copy', 'fresh'):
        found, account = pretrained.initialise(params, weights, temporal_attention=how)
        found = flat(found)
        actions[how] = [
            account.changes[name].action
            for name in (
                f'{block}/LayerNorm_time/scale',
                f'{time}/query/kernel',
                f'{time}/out/kernel',
                projection,
            )
        ]
        if how == 'copy':
            for part in ('LayerNorm_time/scale', 'MultiHeadDotProductAttention_time/out/kernel'):
                expected = image[f'{block}/{part.replace("_time", "_0")}']
                np.testing.assert_array_equal(found[f'{block}/{part}'], expected)
        if how != 'fresh':
            np.testing.assert_array_equal(found[projection], np.zeros((16, 16)))
        else:
            np.testing.assert_array_equal(found[projection], before[projection])
    assert actions == {
        'zero_output': ['fresh', 'fresh', 'fresh', 'zeroed'],
        'copy': ['copied', 'copied', 'copied', 'zeroed'],
        'fresh': ['fresh'] * 4,
    }


@pytest.mark.parametrize('attention', NEW)
def test_an_images_attention_becomes_one_of_several(random_params, attention):
    _, weights = image_vit(random_params, 'gap')
    _, params = video_model(random_params, attention=attention)
    image = flat(weights.params)
    found, account = pretrained.initialise(params, weights)
    name = 'Transformer/encoderblock_0/{}_{}/{}'
    kernel = image[name.format('MultiHeadDotProductAttention', 0, 'query/kernel')]
    for parts, how in ((flat(found), 'zero_output'), (None, 'copy')):
        parts = parts or flat(pretrained.initialise(params, weights, temporal_attention=how)[0])
        taken = [SPACE[attention], *(NEW[attention] if how == 'copy' else [])]
        for over in taken:
            query = parts[name.format('MultiHeadDotProductAttention', over, 'query/kernel')]
            np.testing.assert_array_equal(query, kernel)
    last = 'projection_{}/kernel' if attention == 'divided' else 'MultiHeadDotProductAttention_{}/out/kernel'
    for over in NEW[attention]:
        assert account.changes['Transformer/encoderblock_1/' + last.format(over)].action == 'zeroed'


def test_space_only_is_the_image_vit_frame_by_frame(random_params, quick_jit):
    vit, weights = image_vit(random_params, 'gap')
    settings = {'attention': 'space_only', 'tubelet': (1, 4, 4), 'position_embedding': 'learned_space_time'}
    model, params = video_model(random_params, clip=(3, 16, 16, 3), **settings)
    params, account = pretrained.initialise(fresh_times(params), weights)
    video = np.random.default_rng(1).uniform(-1, 1, (2, 3, 16, 16, 3)).astype(np.float32)
    _, of_clip = quick_jit(model.apply)({'params': params}, video)
    _, of_images = quick_jit(vit.apply)({'params': weights.params}, video.reshape(6, 1, 16, 16, 3))
    found = of_clip['encoded'].reshape(6, 16, 16)
    np.testing.assert_allclose(found, of_images['encoded'], rtol=0, atol=1e-5)
    fresh = {name for name, change in account.changes.items() if change.action == 'fresh'}
    assert fresh == {TIMES, 'output_projection/kernel', 'output_projection/bias'}


@pytest.mark.parametrize('positions', ['learned', 'learned_space_time'])
@pytest.mark.parametrize('attention', ATTENTIONS)
def test_every_array_is_accounted_for(random_params, attention, positions):
    _, weights = image_vit(random_params, 'gap')
    _, params = video_model(random_params, attention=attention, position_embedding=positions)
    for how in ('zero_output', 'copy', 'fresh'):
        found, account = pretrained.initialise(params, weights, temporal_attention=how)
        assert list(flat(found)) == list(account.changes) == list(flat(params))
        used = {array for change in account.changes.values() for array in change.arrays}
        everything = {f'file/{array}' for array in flat(weights.params)}
        assert used | set(account.unused) == everything
        assert not used & set(account.unused)


def trained(random_params, clip=(8, 16, 16, 3), **changes):
    """Random weights of a video model."""
    settings = {**TINY, 'tubelet': (2, 4, 4), **DIVIDED, **changes}
    model, params = video_model(random_params, clip=clip, **settings)
    grid = (clip[0] // 2, clip[1] // 4, clip[2] // 4)
    return model, weights_of(flat(params), settings, grid)


def test_tables_of_places_and_times_are_interpolated(random_params):
    _, weights = trained(random_params)
    _, params = video_model(random_params, clip=(12, 24, 24, 3), **DIVIDED)
    found, account = pretrained.initialise(params, weights)
    source, found = flat(weights.params), flat(found)
    np.testing.assert_array_equal(found[POSITIONS][:, :1], source[POSITIONS][:, :1])
    places = resize(source[POSITIONS][0, 1:].reshape(4, 4, 16), (6, 6))
    np.testing.assert_array_equal(found[POSITIONS][0, 1:].reshape(6, 6, 16), places)
    np.testing.assert_array_equal(found[TIMES][0], resize(source[TIMES][0], (6,)))
    assert {account.changes[name].action for name in (POSITIONS, TIMES)} == {'resized'}


def test_the_same_model_takes_everything_as_it_is(random_params):
    _, weights = trained(random_params)
    _, params = video_model(random_params, **DIVIDED)
    found, account = pretrained.initialise(jax.tree.map(np.zeros_like, params), weights)
    jax.tree.map(np.testing.assert_array_equal, found, weights.params)
    assert {change.action for change in account.changes.values()} == {'copied'}


@pytest.mark.parametrize('attention', ['divided', 'spatio_temporal', 'factorised_encoder'])
def test_places_and_times_are_summed_for_one_table(random_params, quick_jit, attention):
    before, weights = trained(random_params, attention=attention)
    after, params = video_model(
        random_params, **{**DIVIDED, 'attention': attention, 'position_embedding': 'learned'}
    )
    params, account = pretrained.initialise(params, weights)
    video = np.random.default_rng(1).uniform(-1, 1, (2, 8, 16, 16, 3)).astype(np.float32)
    expected, _ = quick_jit(before.apply)({'params': weights.params}, video)
    found, _ = quick_jit(after.apply)({'params': params}, video)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    name = POSITIONS.replace('Trans', 'TemporalTrans') if attention == 'factorised_encoder' else POSITIONS
    change = account.changes[name]
    assert change.action.endswith('summed')
    assert list(change.arrays) == [f'file/{name}', f'file/{name.replace("pos_", "time_")}']
    assert not account.unused


def test_one_table_does_not_come_apart(random_params):
    _, weights = trained(random_params, position_embedding='learned')
    _, params = video_model(random_params, **DIVIDED)
    message = "vit.npz: has a position for each place and time, .* take model.position_embedding='learned'"
    with pytest.raises(ValueError, match=message) as error:
        pretrained.initialise(params, weights)
    assert '\n' not in str(error.value)


def test_a_formula_fills_the_table_of_places(random_params):
    _, weights = image_vit(random_params, 'gap', position_embedding='sinusoidal_2d')
    _, params = video_model(random_params, **DIVIDED)
    found, account = pretrained.initialise(params, weights, grid=(4, 4, 4))
    expected = [np.zeros(16), *sinusoidal_2d((1, 4, 4), 16)]
    np.testing.assert_array_equal(flat(found)[POSITIONS][0], expected)
    assert (account.changes[POSITIONS].action, account.changes[TIMES].action) == ('computed', 'fresh')


@pytest.mark.parametrize(
    ('theirs', 'ours', 'message'),
    [
        (
            'divided',
            'factorised_self_attention',
            'attention divided, .* attention factorised_self_attention:',
        ),
        ('axial', 'local_global', 'attention axial, which cannot start one with attention local_global'),
        (
            'space_only',
            'divided',
            'attention spatio_temporal, factorised_dot_product or space_only, which cannot',
        ),
    ],
)
def test_only_the_same_pattern_goes_from_video_to_video(random_params, theirs, ours, message):
    settings = {'classifier': 'gap', 'position_embedding': 'learned'}
    _, weights = trained(random_params, attention=theirs, **settings)
    _, params = video_model(random_params, attention=ours, **settings)
    with pytest.raises(ValueError, match=f'vit.npz: is a video model with {message}') as error:
        pretrained.initialise(params, weights)
    assert '\n' not in str(error.value)


def test_a_gate_that_the_file_has_not_is_told(random_params):
    _, weights = image_vit(random_params)
    _, params = video_model(random_params, activation='geglu')
    with pytest.raises(ValueError, match=r"only the model has the gated MLPs of model\.activation='geglu'"):
        pretrained.initialise(params, weights)
