"""Learning-rate schedule and optimiser, in small optax pieces.

One step, in order (ViViT section 4.1; the arithmetic is Scenic's):

    g  <- g + decay * w                     l2 only, on the masked leaves
    g  <- g * max_norm / |g|                where the global norm |g| >= max_norm
    u  <- momentum m = 0.9 m + g, or Adam
    w  <- w - lr * u                        lr read at the step before the update
    w  <- w * (1 - lr * decay)              decoupled only, on the masked leaves

`adamw` differs in its last two lines, see `create_optimizer`. All of it is computed in float32.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike
from jaxtyping import Array, Float

SCHEDULES = ('cosine', 'constant', 'steps')
OPTIMIZERS = ('momentum', 'adam', 'adamw')
WEIGHT_DECAY_MODES = ('l2', 'decoupled')
STATE_DTYPES = ('float32', 'bfloat16')


def _check(what: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f'{what} {value!r} is none of {", ".join(choices)}')


def learning_rate_schedule(
    *,
    learning_rate: float,
    schedule: str,
    warmup_steps: float,
    total_steps: int,
    drops: tuple[float, ...] = (),
) -> optax.Schedule:
    """Linear warm-up times cosine decay, or times a tenth at each of some steps.

    lr(s) = base * min(1, s / W) * 0.5 (1 + cos(pi * clip((s - W) / (C - floor(W)), 0, 1)))

    with W = warmup_steps and C = total_steps. Only the length of the cosine takes W as a whole number: that is
    what Scenic's recorded rates for W = 14187.5 show. At its end it stays 0 (Scenic's restarts).

    Args:
        learning_rate: base, the value right after the warm-up.
        schedule: 'cosine', 'constant' (the warm-up alone), or 'steps' (a tenth from each of `drops` on).
        warmup_steps: W >= 0, fractions allowed (2.5 epochs seldom are whole steps); 0 for no warm-up.
        total_steps: C > W, the steps of the whole training.
        drops: steps from which on the rate is a tenth of what it was before; for 'steps' alone.

    Returns:
        A function of the step count (0 before the first update) giving a float32 scalar.

    Raises:
        ValueError: an unknown schedule, a negative warm-up, or one as long as a cosine's training.
    """
    _check('schedule', schedule, SCHEDULES)
    if warmup_steps < 0:
        raise ValueError(f'warmup_steps {warmup_steps} must be >= 0')
    if schedule == 'cosine' and warmup_steps >= total_steps:
        raise ValueError(f'warmup_steps {warmup_steps} must be below total_steps {total_steps}')
    if schedule == 'steps' and not drops:
        raise ValueError("schedule 'steps' needs to know when the rate drops (optimizer.drop_epochs)")

    def rate(step: ArrayLike) -> Float[Array, '']:
        step = jnp.asarray(step, jnp.float32)
        value = jnp.float32(learning_rate)
        if schedule == 'cosine':
            progress = jnp.clip((step - warmup_steps) / (total_steps - math.floor(warmup_steps)), 0.0, 1.0)
            value = value * (0.5 * (1.0 + jnp.cos(jnp.pi * progress)))
        if schedule == 'steps':
            value = value * 0.1 ** jnp.sum(step >= jnp.asarray(drops, jnp.float32))
        if warmup_steps > 0:
            value = value * jnp.minimum(1.0, step / warmup_steps)
        return value

    return rate


def _has_kernel_path(tree: Any) -> Any:
    return jax.tree_util.tree_map_with_path(lambda path, _: 'kernel' in jax.tree_util.keystr(path), tree)


def _has_many_axes(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: jnp.ndim(leaf) > 1, tree)


def _everywhere(tree: Any) -> Any:
    return jax.tree.map(lambda _: True, tree)


MASKS: dict[str, Callable[[Any], Any]] = {
    'kernels': _has_kernel_path,
    'matrices': _has_many_axes,
    'all': _everywhere,
}


def clip_by_global_norm(max_norm: float, *, unchanged: bool = True) -> optax.GradientTransformationExtraArgs:
    """Multiplies all gradients by max_norm / |g| where their global norm |g| is at least `max_norm`.

    Optax's own divides every number by |g| before it multiplies: a pass over all of them more, as compilers do not
    repeat divisions in what comes after. Where `update` is given `grad_norm`, another pass is spared.

    Args:
        max_norm: > 0.
        unchanged: Nothing before this changes the gradient, so that |g| is the `grad_norm` that `update` is given.
    """

    def update(
        updates: Any, state: Any, params: Any = None, *, grad_norm: jax.Array | None = None, **others: Any
    ) -> tuple[Any, Any]:
        del params, others
        norm = grad_norm if unchanged and grad_norm is not None else optax.global_norm(updates)
        scale = jnp.where(norm < max_norm, 1.0, max_norm / norm)
        return jax.tree.map(lambda g: g * scale, updates), state

    return optax.GradientTransformationExtraArgs(lambda _: optax.EmptyState(), update)


def decay_after_update(schedule: optax.Schedule, weight_decay: float) -> optax.GradientTransformation:
    """Shrinks the weights after the step they just took: w <- (w + u) (1 - lr * decay).

    Scenic's `explicit_weight_decay`. The last piece of a chain, where the updates u already hold -lr.

    Args:
        schedule: the learning rate, read at the step before the update.
        weight_decay: decay >= 0.

    Returns:
        A transformation that needs the parameters in `update`; its state is the step count.
    """

    def init(params: Any) -> optax.ScaleByScheduleState:
        del params
        return optax.ScaleByScheduleState(count=jnp.zeros([], jnp.int32))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        if params is None:
            raise ValueError('decay_after_update needs the parameters: update(updates, state, params)')
        shrink = schedule(state.count) * weight_decay
        updates = jax.tree.map(lambda u, w: u - shrink * (w + u), updates, params)
        return updates, optax.ScaleByScheduleState(count=optax.safe_increment(state.count))

    return optax.GradientTransformation(init, update)


def keep_in(
    optimizer: optax.GradientTransformation, field: str, dtype: jax.typing.DTypeLike
) -> optax.GradientTransformation:
    """Keeps one field of an optimiser's state in another type between steps, and computes in float32 all the same.

    Optax's own `accumulator_dtype` and `mu_dtype` multiply in that type, where the decay is rounded too: to
    bfloat16, 0.9 is 0.8984, which shortens every step by 1.5 %, and 0.999 is 1.

    Args:
        optimizer: One whose state is a named tuple.
        field: Of that tuple: `trace` of `optax.trace`, `mu` of `optax.scale_by_adam`.
        dtype: To round to, to the nearest.

    Returns:
        A transformation with the same state, but for that type.
    """

    def cast(state: Any, dtype: jax.typing.DTypeLike) -> Any:
        return state._replace(**{field: optax.tree.cast(getattr(state, field), dtype)})

    def init(params: Any) -> Any:
        return cast(optimizer.init(params), dtype)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        updates, state = optimizer.update(updates, cast(state, jnp.float32), params)
        return updates, cast(state, dtype)

    return optax.GradientTransformation(init, update)


def create_optimizer(
    *,
    name: str,
    schedule: optax.Schedule,
    max_grad_norm: float,
    weight_decay: float,
    weight_decay_mode: str,
    weight_decay_mask: str,
    momentum: float = 0.9,
    b1: float = 0.9,
    b2: float = 0.999,
    epsilon: float = 1e-8,
    state_dtype: str = 'float32',
) -> optax.GradientTransformation:
    """Builds the optimiser of the module's docstring. It expects gradients averaged over all devices.

    'adamw' is the conventional w <- w - lr (adam + decay * w), equal to `optax.adamw`. 'adam' (or 'momentum')
    with 'decoupled' shrinks the weights after the step instead; the two differ by lr^2 * decay * u.

    Args:
        name: 'momentum' (heavy ball, not Nesterov), 'adam' or 'adamw'.
        schedule: the learning rate, see `learning_rate_schedule`.
        max_grad_norm: largest global norm of the gradient, the l2 term included; 0 = no clipping.
        weight_decay: decay >= 0; 0 = none.
        weight_decay_mode: 'l2' (coupled: the gradient of 0.5 * decay * sum w^2) or 'decoupled'.
        weight_decay_mask: which leaves decay: 'kernels' (a path with 'kernel' in it), 'matrices' (more than
            one axis: with attention biases, class tokens and position embeddings, as Scenic's l2) or 'all'.
        momentum: decay of 'momentum'.
        b1: decay of Adam's first moment.
        b2: decay of Adam's second moment.
        epsilon: added to the root of Adam's second moment.
        state_dtype: in which momentum or Adam's first moment is kept between steps, 'float32' or 'bfloat16'. The
            second moment stays float32: it moves by a thousandth a step, and bfloat16 has steps of a 128th. For
            the same reason it is made for a momentum or b1 of about 0.9: at 0.99 changes begin to be lost.

    Returns:
        An optax transformation; `update` needs the parameters, and takes as `grad_norm`, where it is known, the
        global norm of just the gradient that it is given, to compute it once. Its state is plain optax tuples of
        fresh arrays.

    Raises:
        ValueError: an unknown name, mode, mask or type, a negative decay or norm, or adamw with 'l2'.
    """
    _check('optimizer', name, OPTIMIZERS)
    _check('weight_decay_mode', weight_decay_mode, WEIGHT_DECAY_MODES)
    _check('weight_decay_mask', weight_decay_mask, tuple(MASKS))
    _check('state_dtype', state_dtype, STATE_DTYPES)
    if weight_decay < 0 or max_grad_norm < 0:
        raise ValueError(f'weight_decay {weight_decay} and max_grad_norm {max_grad_norm} must be >= 0')
    if name == 'adamw' and weight_decay_mode == 'l2':
        raise ValueError("optimizer 'adamw' takes weight_decay_mode 'decoupled'; for 'l2' use 'adam'")
    mask = MASKS[weight_decay_mask]
    pieces = []
    if weight_decay > 0 and weight_decay_mode == 'l2':
        pieces.append(optax.add_decayed_weights(weight_decay, mask))
    if max_grad_norm > 0:
        pieces.append(clip_by_global_norm(max_grad_norm, unchanged=not pieces))
    if name == 'momentum':
        piece, moment = optax.trace(momentum), 'trace'
    else:
        piece, moment = optax.scale_by_adam(b1, b2, epsilon), 'mu'
    pieces.append(piece if state_dtype == 'float32' else keep_in(piece, moment, state_dtype))
    if weight_decay > 0 and name == 'adamw':
        pieces.append(optax.add_decayed_weights(weight_decay, mask))
    pieces.append(optax.scale_by_learning_rate(schedule))
    if weight_decay > 0 and weight_decay_mode == 'decoupled' and name != 'adamw':
        pieces.append(optax.masked(decay_after_update(schedule, weight_decay), mask))
    return optax.chain(*pieces)


def ema_update(ema_params: Any, params: Any, decay: float, step: ArrayLike | None = None) -> Any:
    """Exponential moving average of the parameters, e <- d e + (1 - d) w.

    Args:
        ema_params: the average. Start it as a copy (`jax.tree.map(jnp.copy, params)`): buffers that it shared
            with the parameters could not be donated.
        params: parameters after the step, the same tree.
        decay: d in [0, 1).
        step: steps done before this one. When given, d = min(decay, (1 + step) / (10 + step)), so that a
            young average follows quickly.

    Returns:
        The new average, the same tree.
    """
    kept = decay if step is None else jnp.minimum(decay, (1.0 + step) / (10.0 + step))
    return jax.tree.map(lambda e, w: kept * e + (1.0 - kept) * w, ema_params, params)
