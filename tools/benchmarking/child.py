"""A contender in a process of its own: does as it is told, line by line, and sleeps in between.

Started by `contenders.Child` as `python -m benchmarking.child`, with a JSON object {name, workload} as its argument.
Each line that it reads is a JSON object {do, ...}; each gets one line in answer, {result} or, for what a user can do
something about, {error}. It ends with its standard input.
"""

import contextlib
import json
import os
import pathlib
import sys
from typing import Any

from benchmarking import measuring
from benchmarking.workload import Workload
from vivit_jax import config as config_module
from vivit_jax import host_memory
from vivit_jax.telling import memory

BFLOAT16 = '-bf16'
MEMORY_STEPS = 2


def asked_of(name: str, workload: Workload) -> Workload:
    """Returns what a contender computes: in bfloat16 where its name says so."""
    return workload.changed(dtype='bfloat16') if name.endswith(BFLOAT16) else workload


def make(name: str, workload: Workload) -> Any:
    """Returns a contender by its name, as 'ours' or 'hf-eager-bf16'."""
    base, workload = name.removesuffix(BFLOAT16), asked_of(name, workload)
    if base.startswith('hf-'):
        from benchmarking.hugging_face import TorchContender

        bfloat16 = workload.dtype == 'bfloat16'
        return TorchContender(workload, compiled=base == 'hf-compiled', bfloat16=bfloat16)
    from benchmarking.jax_contender import JaxContender

    if base != 'reference':
        host_memory.keep()  # as our commands do
    return JaxContender(base, workload)


class Worker:
    """Carries out commands, each a method, for a contender."""

    def __init__(self, name: str, workload: Workload):
        self.workload = asked_of(name, workload)
        self.contender = make(name, workload)

    def compile(self, runs: bool, forward: bool) -> dict[str, Any]:
        """Compiles the training step, and what else it takes to start (`runs`) and to go `forward`."""
        return self.contender.compile(runs=runs, forward=forward)

    def start(self, forward: bool) -> dict[str, Any]:
        """Puts the state in place, takes the first steps, and tells the peak of memory of a training step.

        That is the device's own counter where there is one; else what the process held at most during steps, above
        what it held, without arrays, after compiling.
        """
        measuring.settle()
        before = memory.resident() - self.contender.live_bytes()
        self.contender.start()
        predicted = self.contender.predicted_bytes()
        self.contender.train()
        peaks = [measuring.peak_over(self.contender.train) for _ in range(MEMORY_STEPS)]
        device = self.contender.device_peak()
        if forward:
            self.contender.forward()
        measuring.settle()
        known = [peak - before for peak in peaks if peak is not None]
        return {
            'peak_bytes': max(known, default=None) if device is None else device,
            'peak_of': 'resident set above the start' if device is None else 'device',
            'predicted_bytes': predicted,
        }

    def rest(self) -> None:
        """Gives back what it keeps of memory from one step to the next."""
        measuring.settle()

    def train(self) -> float:
        """Returns the seconds of a training step."""
        return measuring.seconds(self.contender.train)

    def forward(self) -> float:
        """Returns the seconds of a step forward."""
        return measuring.seconds(self.contender.forward)

    def peak(self) -> dict[str, Any] | None:
        """Returns the operations a second that the device could do at most, in which type, and who says so."""
        import jax

        from vivit_jax.telling.peak_flops import peak_flops

        found = peak_flops(jax.local_devices()[:1], self.workload.dtype)
        if found is None:
            return None
        return {'flops': found.flops, 'source': found.source, 'dtype': self.workload.dtype}

    def device(self) -> dict[str, Any]:
        """Returns what it computes on."""
        import jax

        device = jax.local_devices()[0]
        stats = device.memory_stats() or {}
        return {'kind': device.device_kind, 'platform': device.platform, 'bytes': stats.get('bytes_limit')}

    def data_wait(self, config: dict[str, Any] | None, steps: int) -> dict[str, Any]:
        """Returns how long training steps wait for clips: of a configuration's data, or of noise."""
        from benchmarking import data_wait

        if config is None:
            return data_wait.measure(data_wait.config_of(self.workload), noise=True, steps=steps)
        loaded = config_module.load(config['file'], config['overrides'])
        loaded.training.batch_size = self.workload.batch
        with loaded.unlocked():
            loaded.model.update(self.workload.model)  # with what options say of how it computes
        return data_wait.measure(loaded, noise=False, steps=steps)

    def profile(self, of: str, steps: int) -> dict[str, Any]:
        """Returns where the time of steps goes, 'train' or 'forward'."""
        from benchmarking import profiling

        return profiling.profile(self.contender, of, steps)


def main() -> None:
    """Answers until there is nothing more to read."""
    answers = os.fdopen(os.dup(1), 'w')
    os.dup2(2, 1)  # what libraries print is no answer
    with contextlib.suppress(OSError):  # where memory runs out, this process goes before others do
        pathlib.Path('/proc/self/oom_score_adj').write_text('1000')
    asked = json.loads(sys.argv[1])
    worker: Worker | None = None
    for line in sys.stdin:
        command = json.loads(line)
        do = command.pop('do')
        try:
            worker = worker or Worker(asked['name'], Workload.of_json(asked['workload']))
            answer = {'result': getattr(worker, do)(**command)}
        except (ValueError, ImportError, MemoryError) as error:
            answer = {'error': _line(error)}
        except RuntimeError as error:  # both jax and torch say so when memory has run out
            if not any(words in str(error).lower() for words in ('resource_exhausted', 'out of memory')):
                raise
            answer = {'error': f'out of memory: {_line(error)}'}
        answers.write(json.dumps(answer) + '\n')
        answers.flush()


def _line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:300]


if __name__ == '__main__':
    main()
