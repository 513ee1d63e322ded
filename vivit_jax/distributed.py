"""Several processes that train as one: how they are started, and how they end together.

`join` finds the others, or is told where they are; `agreed` decides after each step whether all stop there;
`conclude` ends them. With one process they cost nothing.
"""

import importlib.util
import logging
import os
import re
import socket
import sys
import warnings
from collections.abc import Sequence
from typing import NamedTuple

from vivit_jax import meeting
from vivit_jax.relay import relay
from vivit_jax.telling.printable import printable
from vivit_jax.watchdog import Watchdog

JOIN_SECONDS = 'VIVIT_JAX_JOIN_SECONDS'
EXAMPLE = '--distributed=10.0.0.1:1234,2,0'
# jax's own guards come after ours.
HEARTBEAT = 600  # seconds

_watchdog: Watchdog | None = None


class Place(NamedTuple):
    """The place of a process among those of a run.

    Attributes:
        host: Where process 0 listens.
        port: Its port.
        processes: How many there are.
        process: The number of this one, from 0.
        devices: Which of the machine's devices it takes; None: all that it sees.
    """

    host: str
    port: int
    processes: int
    process: int
    devices: list[int] | None = None


def join(where: str, settings: dict[str, str]) -> None:
    """Joins the other processes, before jax looks for its devices, and has them watched from then on.

    Args:
        where: 'HOST:PORT,N,I': where process 0 listens, the number of processes, and which of them this is, from 0.
            'auto': as a TPU VM, Slurm, Open MPI or Kubernetes tell.
        settings: What must be the same in all processes.

    Raises:
        ValueError: If that is not understood, nothing is found, or the processes do not fit together; one line.
        meeting.Absent: If the others do not come in time.
    """
    global _watchdog
    place = found() if where == 'auto' else told(where)
    seconds = _join_seconds()
    if place.processes == 1:
        return
    host = socket.gethostname()
    if place.process == 0:
        with meeting.listen(place.host, place.port) as door:
            links = meeting.Reception(door, place.processes, settings, _tell).gather(seconds)
        port = _free_port(place.host)
        hosts = [host, *(links[process].host for process in range(1, place.processes))]
        for link in links.values():
            link.send(welcome=port, hosts=hosts)
    else:
        hello = {'process': place.process, 'count': place.processes, 'host': host, 'settings': settings}
        link, answer = meeting.report_to(place.host, place.port, hello, seconds=seconds, tell=_tell)
        links, hosts = {0: link}, answer['hosts']
        port = relay(place.host, answer['welcome'])
    _watchdog = Watchdog(place.process, hosts, links)
    _watchdog.start()
    _initialize_jax(place, port, round(seconds))


def agreed(signum: int | None, *, last: bool) -> int | None:
    """Returns the signal by which all stop after this step, None where they go on; see `Watchdog.agreed`."""
    return signum if _watchdog is None else _watchdog.agreed(signum, last=last)


def conclude(code: int, why: str = '') -> int:
    """Ends together with the other processes and returns the exit code; see `Watchdog.conclude`."""
    return code if _watchdog is None else _watchdog.conclude(code, why)


def several() -> bool:
    """Tells whether there are other processes."""
    return _watchdog is not None


def check() -> None:
    """Looks whether jax has found other processes without being told, as it does on TPU pods.

    Raises:
        ValueError: If so: nobody would watch over them; one line.
    """
    import jax

    if _watchdog is None and jax.process_count() > 1:
        raise ValueError(f'this is one of {jax.process_count()} processes: start each with --distributed')


def told(where: str) -> Place:
    """Reads HOST:PORT,N,I.

    Raises:
        ValueError: If it is none; one line.
    """
    match = re.fullmatch(r'(\S+):(\d+),(\d+),(\d+)', where)
    if not match:
        raise ValueError(f'--distributed={where!r}: write HOST:PORT,N,I, as {EXAMPLE}')
    port, count, process = (int(match[group]) for group in (2, 3, 4))
    if not 0 < port < 1 << 16:
        raise ValueError(f'--distributed={where!r}: port {port} must be in [1, 65535]')
    if process >= count:
        raise ValueError(
            f'--distributed={where!r}: {count} processes are numbered 0 to {count - 1}, this one {process}'
            if count
            else f'--distributed={where!r}: 0 processes; there is at least 1'
        )
    return Place(match[1].strip('[]'), port, count, process)


def found() -> Place:
    """Looks for the place of this process where jax would: TPU VM, Slurm, Open MPI, Kubernetes.

    Raises:
        ValueError: If there is nothing of that kind, or it cannot be used; one line.
    """
    advice = f'tell HOST:PORT,N,I, as {EXAMPLE}'
    mpi4py = _open_mpi_5()
    if mpi4py and importlib.util.find_spec('mpi4py') is None:
        raise ValueError(
            f'--distributed: Open MPI 5 tells where process 0 is by way of mpi4py only (pip install mpi4py); {advice}'
        )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        try:
            from jax._src.clusters import ClusterEnv

            address, count, process, devices = ClusterEnv.auto_detect_unset_distributed_params(
                os.environ.get('JAX_COORDINATOR_ADDRESS'),
                None,
                None,
                None,
                'mpi4py' if mpi4py else None,
                round(_join_seconds()),
            )
            _finalize_mpi()
        except Exception as error:
            words = ' '.join(f'{type(error).__name__}: {error}'.split())[:200]
            raise ValueError(
                f'--distributed could not ask about the other processes ({words}): {advice}'
            ) from error
    if address is None or count is None or process is None:
        why = 'no TPU VM, Slurm, Open MPI or Kubernetes tells of one'
        if any('kubernetes' in str(warning.message) for warning in caught):
            why = "this is Kubernetes, but the package to ask it is missing (pip install 'jax[k8s]')"
        elif 'SLURM_JOB_ID' in os.environ:
            why = 'this is Slurm, but no task of it: start it by srun'
        raise ValueError(f'--distributed found no cluster: {why}; {advice}')
    host, _, port = address.rpartition(':')
    return Place(host.strip('[]'), int(port), count, process, _devices(devices))


def _open_mpi_5() -> bool:
    """Tells whether this is Open MPI 5 or later, which has no variable that says where process 0 is."""
    names = os.environ
    return 'OMPI_COMM_WORLD_RANK' in names and 'OMPI_MCA_orte_hnp_uri' not in names


def _finalize_mpi() -> None:
    """Ends MPI, which was needed for the address only: else mpirun takes every end for a crash."""
    mpi = sys.modules.get('mpi4py.MPI')
    if mpi is not None and mpi.Is_initialized() and not mpi.Is_finalized():
        mpi.Finalize()


def _devices(chosen: Sequence[int] | None) -> list[int] | None:
    """Corrects the choice of one GPU a process, which jax makes with Slurm and Open MPI.

    A process that is alone on its machine takes all that are there; one that was given a GPU by the scheduler sees
    only that, whatever its number.
    """
    layout = os.environ.get('SLURM_STEP_TASKS_PER_NODE') or os.environ.get('SLURM_TASKS_PER_NODE') or ''
    counts = {int(part.partition('(')[0]) for part in layout.split(',') if part}
    alone = counts == {1} or os.environ.get('OMPI_COMM_WORLD_LOCAL_SIZE') == '1'
    seen = [part for part in os.environ.get('CUDA_VISIBLE_DEVICES', '').split(',') if part]
    return None if chosen is None or alone or len(seen) == 1 else list(chosen)


def _join_seconds() -> float:
    """Returns how long processes wait for each other at the start."""
    text = os.environ.get(JOIN_SECONDS) or '300'
    if not re.fullmatch(r'\d+(\.\d+)?', text) or not 1 <= float(text) <= 86400:
        raise ValueError(f'{JOIN_SECONDS}={text!r}: must be seconds in [1, 86400]')
    return float(text)


def _free_port(host: str) -> int:
    """Returns a port for jax's own service, which is reached as process 0 is."""
    with meeting.listen(host, 0) as door:
        return door.getsockname()[1]


def _initialize_jax(place: Place, port: int, seconds: int) -> None:
    """Starts jax.distributed, by an address of this machine: process 0 has the service, the others a relay to it."""
    import jax

    # Signals are ours: jax's service would swallow SIGTERM outside of training.
    jax.config.update('jax_enable_preemption_service', False)
    # That proxies are set is no news, and 127.0.0.1 is not behind one.
    logging.getLogger('jax._src.distributed').setLevel(logging.ERROR)
    near = [os.environ.get(name) for name in ('no_grpc_proxy', 'no_proxy')]
    os.environ['no_grpc_proxy'] = ','.join(filter(None, [*near, '127.0.0.1']))  # noqa: SIM112
    everywhere = '127.0.0.1' if place.host in meeting.LOOPBACK else '[::]'
    jax.distributed.initialize(
        f'127.0.0.1:{port}',
        num_processes=place.processes,
        process_id=place.process,
        local_device_ids=place.devices,
        cluster_detection_method='deactivate',
        initialization_timeout=seconds,
        heartbeat_timeout_seconds=HEARTBEAT,
        coordinator_bind_address=f'{everywhere}:{port}',
    )


def _tell(text: str) -> None:
    print(printable(text), file=sys.stderr, flush=True)
