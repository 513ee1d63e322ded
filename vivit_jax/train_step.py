"""One step of training: what it changes, and how."""

from typing import Any

import flax
import jax
import jax.numpy as jnp
import optax

from vivit_jax import evaluate, losses
from vivit_jax.data import pipeline
from vivit_jax.mixup import mixup
from vivit_jax.models.vivit import ViViT
from vivit_jax.optimizer import ema_update


@flax.struct.dataclass
class TrainState:
    """Everything that a step changes.

    Attributes:
        step: Steps done, int32 scalar. (Shapes or shardings may stand in for the arrays.)
        params: The model's parameters.
        opt_state: The optimiser's state.
        ema: Moving average of the parameters, None without.
    """

    step: Any
    params: Any
    opt_state: Any
    ema: Any | None


def create_state(
    model: ViViT,
    optimizer: optax.GradientTransformation,
    clip: tuple[int, int, int, int],
    *,
    seed: int,
    with_ema: bool,
) -> TrainState:
    """Returns fresh parameters and optimiser state for clips of `clip = (t, h, w, c)`."""
    params = model.init(jax.random.key(seed), jnp.zeros((1, *clip), jnp.float32))['params']
    ema = jax.tree.map(jnp.copy, params) if with_ema else None
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params), ema)


def train_step(
    state: TrainState,
    batch: pipeline.Batch,
    *,
    model: ViViT,
    optimizer: optax.GradientTransformation,
    loss: str,
    head_sizes: tuple[int, ...],
    label_smoothing: float,
    mixup_alpha: float,
    ema_decay: float,
    seed: int,
    learns: Any = True,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One step of gradient descent.

    The batch is seen whole, however it is split over devices: its gradient is the average over all examples
    before it is clipped. Randomness comes from the seed and the step alone.

    Args:
        state: Where training stands.
        batch: `video` `[b t h w c]`, `label`, `mask` as the pipeline gives them.
        model: The model.
        optimizer: See `optimizer.create_optimizer`.
        loss: One of `losses.LOSSES`.
        head_sizes: Classes of each head.
        label_smoothing: See `losses.smooth_labels`.
        mixup_alpha: See `mixup.mixup`; 0 leaves it out.
        ema_decay: Of the moving average; 0 when there is none.
        seed: Of mixup, dropout and stochastic depth.
        learns: Which parameters do: a bool, or a tree of one for each parameter. The others stay as they are, bit
            for bit, their average too, and cost no backward pass; see `learning_rates.scale_updates` for the
            optimiser's side.

    Returns:
        The next state, and float32 scalars: `loss`, `grad_norm` (before clipping), `update_norm`.
    """
    mixup_rng, dropout_rng = jax.random.split(jax.random.fold_in(jax.random.key(seed), state.step))
    video = evaluate.to_float(batch['video'])
    targets = losses.one_hot_targets(batch['label'], head_sizes)
    if mixup_alpha:
        video, targets = mixup(mixup_rng, video, targets, alpha=mixup_alpha)

    def mean_loss(params: Any) -> jax.Array:
        params = jax.tree.map(lambda yes, w: w if yes else jax.lax.stop_gradient(w), learns, params)
        logits, _ = model.apply({'params': params}, video, train=True, rngs={'dropout': dropout_rng})
        each = losses.per_example_loss(
            logits, targets, loss=loss, head_sizes=head_sizes, label_smoothing=label_smoothing
        )
        return losses.masked_mean(each, batch['mask'])

    value, gradient = jax.value_and_grad(mean_loss)(state.params)
    updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    params = jax.tree.map(lambda yes, new, old: new if yes else old, learns, params, state.params)
    ema = state.ema
    if ema is not None:
        average = ema_update(ema, params, ema_decay, state.step)
        ema = jax.tree.map(lambda yes, new, old: new if yes else old, learns, average, ema)
    scalars = {
        'loss': value,
        'grad_norm': optax.global_norm(gradient),
        'update_norm': optax.global_norm(updates),
    }
    return TrainState(state.step + 1, params, opt_state, ema), scalars
