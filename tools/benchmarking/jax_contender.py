"""Ours and the reference as contenders: compiled from shapes first, run afterwards."""

import dataclasses
import functools
import time
from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from benchmarking import reference
from benchmarking.workload import Workload
from vivit_jax import sharding
from vivit_jax.optimizer import create_optimizer, learning_rate_schedule
from vivit_jax.telling import memory
from vivit_jax.train_step import create_state, train_step

# Ours in other ways: fields of the model that are set beside those asked for.
VARIANTS: dict[str, dict[str, Any]] = {
    'ours': {},
    'ours-loop': {'scan_layers': False, 'remat': 'none'},
    'ours-plain': {'scan_layers': False, 'remat': 'none', 'attention_backend': 'xla'},
}


# As it is, and with memory kept from step to step, as our commands keep it.
REFERENCES = ('reference', 'reference-kept')


@dataclasses.dataclass(frozen=True)
class Programs:
    """What a contender runs, as pure functions.

    Attributes:
        create: Gives the state before the first step.
        train: From a state and a batch to the next state and what it tells of the step.
        forward: From parameters and a batch to logits.
        params: Takes the parameters out of a state.
        batch: Names the clips and classes of a batch.
    """

    create: Callable[[], Any]
    train: Callable[[Any, Any], tuple[Any, Any]]
    forward: Callable[[Any, Any], jax.Array]
    params: Callable[[Any], Any]
    batch: Callable[[Any, Any], Any]


def programs(name: str, workload: Workload) -> Programs:
    """Returns the programs of `REFERENCES` or one of `VARIANTS`."""
    return _reference(workload) if name in REFERENCES else ours(workload.changed(**VARIANTS[name]))


def ours(workload: Workload, mesh: Mesh | None = None) -> Programs:
    """Returns the package's own model and step, with the reference's optimiser; on a mesh, if there is one."""
    model = workload.make_model()
    rate = learning_rate_schedule(
        learning_rate=reference.LEARNING_RATE, schedule='constant', warmup_steps=0, total_steps=1
    )
    optimizer = create_optimizer(
        name='momentum',
        schedule=rate,
        max_grad_norm=reference.MAX_NORM,
        weight_decay=0.0,
        weight_decay_mode='l2',
        weight_decay_mask='all',
        momentum=reference.MOMENTUM,
    )
    train = functools.partial(
        train_step,
        model=model,
        optimizer=optimizer,
        loss='softmax',
        head_sizes=(workload.num_classes,),
        label_smoothing=0.0,
        mixup_alpha=0.0,
        ema_decay=0.0,
        seed=0,
        mesh=mesh,
    )

    def batch(video: Any, labels: Any) -> dict[str, Any]:
        rows = len(labels)
        return {
            'video': video,
            'label': labels,
            'mask': jnp.ones(rows, bool),
            'index': jnp.arange(rows, dtype=jnp.int32),
        }

    def forward(params: Any, batch: dict[str, Any]) -> Any:
        logits, _ = model.apply({'params': params}, batch['video'])
        return logits

    return Programs(
        create=functools.partial(create_state, model, optimizer, workload.clip, seed=0, with_ema=False),
        train=train,
        forward=forward,
        params=lambda state: state.params,
        batch=batch,
    )


def _reference(workload: Workload) -> Programs:
    model = reference.make(workload.num_classes, workload.model)
    return Programs(
        create=functools.partial(reference.create_state, model, workload.clip),
        train=lambda state, batch: reference.train_step(state, batch['video'], batch['label'], model=model),
        forward=lambda params, batch: cast(jax.Array, model.apply({'params': params}, batch['video'])),
        params=lambda state: state[0],
        batch=lambda video, labels: {'video': video, 'label': labels},
    )


class JaxContender:
    """A contender in JAX; its state is donated to every training step."""

    def __init__(self, name: str, workload: Workload):
        self.workload = workload
        self.programs = programs(name, workload)
        self.state: Any = None
        self.create_program: Any = None

    def compile(self, *, runs: bool, forward: bool) -> dict[str, Any]:
        """Compiles from shapes, so that no array is there yet.

        Args:
            runs: Whether the initialiser is compiled too, for `start`.
            forward: Whether the step forward is, too.

        Returns:
            Seconds to trace and to compile the training step, and its memory as XLA plans it, in bytes.
        """
        jax.clear_caches()
        one = sharding.make_mesh(devices=jax.local_devices()[:1])  # of perhaps several
        with sharding.in_use(one):
            return self._compile(runs=runs, forward=forward)

    def _compile(self, *, runs: bool, forward: bool) -> dict[str, Any]:
        made, state = self.programs, jax.eval_shape(self.programs.create)
        batch = jax.eval_shape(self._batch)
        if runs:
            self.create_program = jax.jit(made.create).lower().compile()
        began = time.perf_counter()
        lowered = jax.jit(made.train, donate_argnums=0).lower(state, batch)
        traced = time.perf_counter()
        self.train_program = lowered.compile()
        compiled = time.perf_counter()
        result: dict[str, Any] = {'trace_seconds': traced - began, 'compile_seconds': compiled - traced}
        result['parameters'] = sum(leaf.size for leaf in jax.tree.leaves(made.params(state)))
        result['planned'] = planned(self.train_program)
        if forward:
            began = time.perf_counter()
            self.forward_program = jax.jit(made.forward).lower(made.params(state), batch).compile()
            result['forward_compile_seconds'] = time.perf_counter() - began
        return result

    def start(self) -> None:
        """Puts the state and a batch on the device."""
        self.batch = jax.block_until_ready(jax.device_put(self._batch()))
        self.state = jax.block_until_ready(self.create_program())

    def train(self) -> None:
        """Takes a training step and waits for it."""
        self.state, told = self.train_program(self.state, self.batch)
        jax.block_until_ready((self.state, told))

    def forward(self) -> None:
        """Classifies the batch and waits for it."""
        self.forward_program(self.programs.params(self.state), self.batch).block_until_ready()

    def predicted_bytes(self) -> int | None:
        """Returns what the package predicts that state, step and batch take together, once started."""
        found = memory.predicted(self.train_program, self.batch)
        return None if found is None else found.total - found.rest

    def live_bytes(self) -> int:
        """Returns what the arrays take that are there, in bytes."""
        return sum(array.nbytes for array in jax.live_arrays())

    def device_peak(self) -> int | None:
        """Returns the most memory that the device has had in use, in bytes; None where it does not tell (CPU)."""
        stats = jax.local_devices()[0].memory_stats()
        return stats.get('peak_bytes_in_use') if stats else None

    def _batch(self) -> Any:
        return self.programs.batch(*self.workload.clips())


def planned(compiled: Any) -> dict[str, int] | None:
    """Returns what a program holds, in bytes, as XLA plans it; None where it does not tell.

    `arguments` and `temporary`, and `total`, with what of its results is not written over its arguments.
    """
    plan = compiled.memory_analysis()
    if plan is None:
        return None
    arguments, temporary = plan.argument_size_in_bytes, plan.temp_size_in_bytes
    fresh = plan.output_size_in_bytes - plan.alias_size_in_bytes
    return {'arguments': arguments, 'temporary': temporary, 'total': arguments + fresh + temporary}
