"""A training step on several devices, in a process of its own, which can have simulated ones.

Run as `python -m benchmarking.sharded JSON` with a JSON object {workload, devices, fsdp, steps}; prints one line,
{seconds, planned} or, for what a user can do something about, {error}.
"""

import json
import os
import subprocess
import sys
from typing import Any

from benchmarking import measuring
from benchmarking.contenders import TOOLS
from benchmarking.workload import Workload

# CPUs have as many devices as are asked for; what GPUs and TPUs have is not changed by it.
SIMULATED = 'jax_num_cpu_devices'


def run(workload: dict[str, Any], devices: int, fsdp: bool, steps: int) -> dict[str, Any]:
    """Runs training steps in a new process.

    Args:
        workload: A `Workload` as a dict.
        devices: That share the batch.
        fsdp: Whether they share the parameters too.
        steps: That are timed.

    Returns:
        `seconds`, of every step, and `planned`, what each device holds, in bytes, as XLA plans it.

    Raises:
        ValueError: If there are not as many devices, or the batch does not divide; or the process fails, with the
            last line that it said.
    """
    asked = json.dumps({'workload': workload, 'devices': devices, 'fsdp': fsdp, 'steps': steps})
    paths = [str(TOOLS), *filter(None, [os.environ.get('PYTHONPATH')])]
    result = subprocess.run(
        [sys.executable, '-m', 'benchmarking.sharded', asked],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, 'PYTHONPATH': os.pathsep.join(paths), 'JAX_ENABLE_COMPILATION_CACHE': 'false'},
    )
    lines = result.stdout.splitlines()
    if result.returncode or not lines:
        said = result.stderr.strip().splitlines() or ['without a word']
        raise ValueError(f'{devices} devices: ended with {result.returncode}: {said[-1]}')
    answer = json.loads(lines[-1])
    if 'error' in answer:
        raise ValueError(answer['error'])
    return answer


def measure(workload: Workload, devices: int, *, fsdp: bool, steps: int) -> dict[str, Any]:
    """Does what `run` says, in this process."""
    import jax

    from benchmarking import jax_contender
    from vivit_jax import sharding

    if len(jax.devices()) < devices:
        raise ValueError(f'{devices} devices: there are {len(jax.devices())} ({jax.devices()[0].platform})')
    if workload.batch % devices:
        raise ValueError(f'{devices} devices: they do not divide a batch of {workload.batch}')
    mesh = sharding.make_mesh(devices if fsdp else 1, jax.devices()[:devices])
    programs = jax_contender.ours(workload, mesh)
    shapes = jax.eval_shape(programs.create)
    of_state, of_batch = sharding.state_sharding(mesh, shapes), sharding.batch_sharding(mesh)
    batch = jax.device_put(programs.batch(*workload.clips()), of_batch)
    state = jax.jit(programs.create, out_shardings=of_state)()
    step = jax.jit(programs.train, donate_argnums=0, out_shardings=(of_state, sharding.replicated(mesh)))
    program = step.lower(state, batch).compile()
    seconds = []

    def once() -> None:
        nonlocal state
        state, told = program(state, batch)
        jax.block_until_ready((state, told))

    for _ in range(steps + 1):
        seconds.append(measuring.seconds(once))
    return {'seconds': seconds[1:], 'planned': jax_contender.planned(program)}


def main() -> None:
    """Answers what its argument asks for."""
    import jax

    asked = json.loads(sys.argv[1])
    jax.config.update(SIMULATED, asked['devices'])
    try:
        answer = measure(
            Workload.of_json(asked['workload']), asked['devices'], fsdp=asked['fsdp'], steps=asked['steps']
        )
    except ValueError as error:
        answer = {'error': str(error)}
    print(json.dumps(answer))


if __name__ == '__main__':
    main()
