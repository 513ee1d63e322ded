"""One step of training: what it changes, and how."""

from collections.abc import Callable
from typing import Any

import flax
import jax
import jax.numpy as jnp
import optax
from einops import rearrange
from jax.sharding import Mesh
from jax.typing import ArrayLike

from vivit_jax import augment, evaluate, losses, mixup, sharding
from vivit_jax.data import pipeline
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
    accumulate: int = 1,
    mesh: Mesh | None = None,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One step of gradient descent.

    The batch is seen whole, however it is split over devices and micro-batches: its gradient is the average over
    all examples before it is clipped. Randomness comes from the seed and the step, with several micro-batches that
    of dropout and stochastic depth from the micro-batch's number as well.

    Args:
        state: Where training stands.
        batch: `video` `[b t h w c]`, `label`, `mask` as the pipeline gives them, and what `augment.augment` is to do.
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
        accumulate: Micro-batches that are gone through one after the other, to need the memory of one of them. Times
            the devices it divides b.
        mesh: The devices over which the batch is split, None for one.

    Returns:
        The next state, of which `step` alone differs where loss or gradient are not finite (what a run does then:
        `nan_guard`). And float32 scalars: `loss`, `grad_norm` (before clipping), `update_norm`, and `update_ratio`,
        which is that over the norm of the parameters that learn, after the update; both NaN where there was none.
    """
    mixup_rng, dropout_rng = jax.random.split(jax.random.fold_in(jax.random.key(seed), state.step))
    share = mixup.share(mixup_rng, alpha=mixup_alpha) if mixup_alpha else None
    parts = micro_batches(batch, accumulate, mesh)
    examples = jnp.sum(batch['mask'].astype(jnp.float32))
    learns = jax.tree.broadcast(learns, state.params)

    def loss_of_part(learning: Any, number: ArrayLike) -> jax.Array:
        params = jax.tree.map(lambda yes, w, kept: w if yes else kept, learns, learning, state.params)
        part = take(parts, number, mesh)
        video, targets = floats(part, head_sizes)
        if share is not None:
            # What example i of the batch meets, b - 1 - i, is its mirror image in the mirrored micro-batch.
            mirrored = part if accumulate == 1 else take(parts, accumulate - 1 - number, mesh)
            partners, their_targets = floats(
                jax.tree.map(lambda rows: jnp.flip(rows, axis=0), mirrored), head_sizes
            )
            video = mixup.blend(video, partners, share)
            targets = mixup.blend(targets, their_targets, share)
        rng = jax.random.fold_in(dropout_rng, number) if accumulate > 1 else dropout_rng
        with sharding.in_use(mesh):
            # Blocks gather theirs themselves, one at a time.
            params = sharding.gathered(params, but='encoderblock_')
            logits, _ = model.apply({'params': params}, video, train=True, rngs={'dropout': rng})
        each = losses.per_example_loss(
            logits, targets, loss=loss, head_sizes=head_sizes, label_smoothing=label_smoothing
        )
        return losses.masked_mean(each, part['mask'], examples)

    learning = jax.tree.map(lambda yes, w: w if yes else None, learns, state.params)
    value, gradient = sum_of_gradients(loss_of_part, learning, accumulate)
    scalars = {'loss': value, 'grad_norm': optax.global_norm(gradient)}

    def change(before: tuple[Any, Any, Any]) -> tuple[tuple[Any, Any, Any], dict[str, jax.Array]]:
        old, opt_state, ema = before
        whole = jax.tree.map(lambda yes, g, w: g if yes else jnp.zeros_like(w), learns, gradient, old)
        updates, opt_state = optax.with_extra_args_support(optimizer).update(
            whole, opt_state, old, grad_norm=scalars['grad_norm']
        )
        new = optax.apply_updates(old, updates)
        new = jax.tree.map(lambda yes, moved, stays: moved if yes else stays, learns, new, old)
        if ema is not None:
            average = ema_update(ema, new, ema_decay, state.step)
            ema = jax.tree.map(lambda yes, moved, stays: moved if yes else stays, learns, average, ema)
        norm = optax.global_norm(updates)
        learnt = optax.global_norm(jax.tree.map(lambda yes, w: w if yes else None, learns, new))
        # Where all that learns is 0, as a new head before its first update, so is the update.
        ratio = norm / jnp.maximum(learnt, jnp.finfo(jnp.float32).tiny)
        return (new, opt_state, ema), {'update_norm': norm, 'update_ratio': ratio}

    def leave(before: tuple[Any, Any, Any]) -> tuple[tuple[Any, Any, Any], dict[str, jax.Array]]:
        return before, dict.fromkeys(('update_norm', 'update_ratio'), jnp.float32(jnp.nan))

    # Whether the step is finite is asked whatever `training.on_nan` says: one program, whose numbers do not depend on
    # that. In a branch state is overwritten in place; a choice between each old and new number would copy momentum.
    finite = jnp.isfinite(scalars['loss']) & jnp.isfinite(scalars['grad_norm'])
    then, of_update = jax.lax.cond(finite, change, leave, (state.params, state.opt_state, state.ema))
    return TrainState(state.step + 1, *then), scalars | of_update


def micro_batches(batch: pipeline.Batch, accumulate: int, mesh: Mesh | None = None) -> pipeline.Batch:
    """Cuts every array of a batch, `[b ...]`, into `[accumulate, b / accumulate, ...]`.

    Each device keeps its own rows: a micro-batch has the next few of every device, and nothing is sent. On d devices
    micro-batch j takes rows j r to (j + 1) r of the b / d on each, r = b / d / accumulate, in order; so the mirror
    image of micro-batch j, row i for row b - 1 - i, is micro-batch accumulate - 1 - j backwards.
    """
    devices = 1 if mesh is None else mesh.size

    def cut(rows: jax.Array) -> jax.Array:
        return rearrange(rows, '(d j r) ... -> j (d r) ...', d=devices, j=accumulate)

    return jax.tree.map(cut, batch)


def take(parts: pipeline.Batch, number: ArrayLike, mesh: Mesh | None) -> pipeline.Batch:
    """Returns one of the `micro_batches`, its rows split over the mesh, its clips augmented as it tells."""
    part = jax.tree.map(lambda rows: jax.lax.dynamic_index_in_dim(rows, number, keepdims=False), parts)
    if mesh is not None:
        part = jax.lax.with_sharding_constraint(part, sharding.batch_sharding(mesh))
    return part | {'video': augment.augment(part)}


def floats(part: pipeline.Batch, head_sizes: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
    """Returns videos `[b t h w c]` in [-1, 1] and targets `[b k]`, both floats."""
    return evaluate.to_float(part['video']), losses.one_hot_targets(part['label'], head_sizes)


def sum_of_gradients(
    loss_of_part: Callable[[Any, ArrayLike], jax.Array], params: Any, parts: int
) -> tuple[jax.Array, Any]:
    """Returns the sum of `loss_of_part(params, number)` over the numbers below `parts`, and its gradient."""
    both = jax.value_and_grad(loss_of_part)
    if parts == 1:
        return both(params, 0)

    def add(sums: Any, number: jax.Array) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, sums, both(params, number)), None

    none_yet = (jnp.zeros(()), jax.tree.map(jnp.zeros_like, params))
    return jax.lax.scan(add, none_yet, jnp.arange(parts))[0]
