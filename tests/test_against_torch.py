"""The encoder block and the optimisers against PyTorch's own."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vivit_jax.models.encoder import EncoderBlock
from vivit_jax.models.patterns import PATTERNS
from vivit_jax.optimizer import create_optimizer

torch = pytest.importorskip('torch', reason='compares with PyTorch, which is not installed')

WIDTH, HEADS, HIDDEN = 24, 3, 40


def torch_block(params):
    """A pre-norm `TransformerEncoderLayer` with our parameters."""
    layer = torch.nn.TransformerEncoderLayer(
        WIDTH,
        HEADS,
        HIDDEN,
        dropout=0.0,
        activation='gelu',
        layer_norm_eps=1e-5,
        batch_first=True,
        norm_first=True,
    )
    attention = params['MultiHeadDotProductAttention_0']
    parts = [attention[name] for name in ('query', 'key', 'value')]
    mlp = params['MlpBlock_0']
    state = {
        'self_attn.in_proj_weight': np.concatenate(
            [part['kernel'].reshape(WIDTH, WIDTH).T for part in parts]
        ),
        'self_attn.in_proj_bias': np.concatenate([part['bias'].reshape(WIDTH) for part in parts]),
        'self_attn.out_proj.weight': attention['out']['kernel'].reshape(WIDTH, WIDTH).T,
        'self_attn.out_proj.bias': attention['out']['bias'],
        'linear1.weight': mlp['Dense_0']['kernel'].T,
        'linear1.bias': mlp['Dense_0']['bias'],
        'linear2.weight': mlp['Dense_1']['kernel'].T,
        'linear2.bias': mlp['Dense_1']['bias'],
    }
    for number in (0, 1):
        state[f'norm{number + 1}.weight'] = params[f'LayerNorm_{number}']['scale']
        state[f'norm{number + 1}.bias'] = params[f'LayerNorm_{number}']['bias']
    layer.load_state_dict({name: torch.tensor(np.ascontiguousarray(value)) for name, value in state.items()})
    return layer.train()


def test_the_block_is_pytorchs():
    block = EncoderBlock(
        pattern=PATTERNS['spatio_temporal'],
        grid=(1, 1, 7),
        num_heads=HEADS,
        mlp_dim=HIDDEN,
        dropout_rate=0.0,
        attention_dropout_rate=0.0,
        attention_backend='auto',
        remat_attention=False,
        activation='gelu_exact',
        norm_epsilon=1e-5,
        dtype=jnp.dtype('float32'),
    )
    random = np.random.default_rng(0)
    x = jnp.asarray(random.normal(size=(2, 7, WIDTH)), jnp.float32)
    shapes = jax.eval_shape(lambda: block.init(jax.random.key(0), x, None, train=False, capture=False))[
        'params'
    ]
    params = jax.tree.map(lambda leaf: 0.3 * random.normal(size=leaf.shape).astype(np.float32), shapes)

    def total(params, x):
        y, _ = block.apply({'params': params}, x, None, train=False, capture=False)
        return jnp.sum(jnp.sin(y)), y

    (_, ours), (_, gradient) = jax.value_and_grad(total, argnums=(0, 1), has_aux=True)(params, x)
    layer, theirs_in = torch_block(params), torch.tensor(np.array(x), requires_grad=True)
    theirs = layer(theirs_in)
    theirs.sin().sum().backward()
    np.testing.assert_allclose(ours, theirs.detach().numpy(), rtol=0, atol=1e-5)
    np.testing.assert_allclose(gradient, theirs_in.grad.numpy(), rtol=0, atol=2e-5)


@pytest.mark.parametrize(
    ('settings', 'theirs'),
    [
        ({'name': 'momentum'}, lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9)),
        (
            {'name': 'momentum', 'weight_decay': 0.3, 'weight_decay_mode': 'l2'},
            lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.3),
        ),
        (
            {'name': 'adam', 'weight_decay': 0.3, 'weight_decay_mode': 'l2'},
            lambda p: torch.optim.Adam(p, lr=0.1, weight_decay=0.3),
        ),
        ({'name': 'adamw', 'weight_decay': 0.3}, lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.3)),
    ],
    ids=['momentum', 'momentum l2', 'adam l2', 'adamw'],
)
def test_optimisers_are_pytorchs(settings, theirs):
    """Five steps on a function with known gradients, all parameters decaying, as PyTorch does.

    Adam's first steps divide by 1 - 0.999, which float32 knows to 6e-5: half of that, of a step of 0.1, is allowed
    twice over.
    """
    random = np.random.default_rng(1)
    start = {'kernel': random.normal(size=(3, 4)), 'bias': random.normal(size=4)}
    start = {name: value.astype(np.float32) for name, value in start.items()}
    defaults = {'weight_decay': 0.0, 'weight_decay_mode': 'decoupled', 'weight_decay_mask': 'all'}
    optimizer = create_optimizer(
        schedule=optax.constant_schedule(0.1), max_grad_norm=0.0, **{**defaults, **settings}
    )
    params, state = start, optimizer.init(start)
    twins = {name: torch.nn.Parameter(torch.tensor(value)) for name, value in start.items()}
    twin_optimizer = theirs(list(twins.values()))
    for _ in range(5):
        gradient = jax.tree.map(jnp.cos, params)
        updates, state = optimizer.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
        for parameter in twins.values():
            parameter.grad = parameter.detach().cos()
        twin_optimizer.step()
    for name, value in params.items():
        np.testing.assert_allclose(
            value, twins[name].detach().numpy(), rtol=0, atol=6e-6 if 'adam' in settings['name'] else 1e-6
        )
