"""Finding the other processes, meeting them, and passing on what jax says to them."""

import socket
import sys
import threading
import types
import warnings

import pytest

from vivit_jax import distributed, meeting
from vivit_jax.distributed import Place, found, told
from vivit_jax.relay import relay

SETTINGS = {'config.model.width': '16', '--workdir': 'runs/x'}


@pytest.fixture
def bare(monkeypatch):
    """An environment in which no scheduler has left anything; returns what sets its variables."""
    for name in ('JAX_COORDINATOR_ADDRESS', 'JAX_COORDINATOR_PORT', 'CUDA_VISIBLE_DEVICES', 'OMPI_VERSION'):
        monkeypatch.delenv(name, raising=False)
    for start in ('SLURM_', 'OMPI_', 'KUBERNETES_', 'TPU_', 'MEGASCALE_'):
        for name in [name for name in distributed.os.environ if name.startswith(start)]:
            monkeypatch.delenv(name)

    def set_all(**variables):
        for name, value in variables.items():
            monkeypatch.setenv(name, str(value))

    return set_all


# --- Where this process is among the others ---


def test_the_place_is_told():
    assert told('10.0.0.1:1234,4,3') == Place('10.0.0.1', 1234, 4, 3)
    assert told('[fe80::1]:80,2,0') == Place('fe80::1', 80, 2, 0)
    for where, line in {
        'here': "--distributed='here': write HOST:PORT,N,I, as --distributed=10.0.0.1:1234,2,0",
        'host:1234,2': "--distributed='host:1234,2': write HOST:PORT,N,I, as --distributed=10.0.0.1:1234,2,0",
        'host:99999,2,0': "--distributed='host:99999,2,0': port 99999 must be in [1, 65535]",
        'host:1234,2,2': "--distributed='host:1234,2,2': 2 processes are numbered 0 to 1, this one 2",
        'host:1234,0,0': "--distributed='host:1234,0,0': 0 processes; there is at least 1",
    }.items():
        with pytest.raises(ValueError) as error:  # noqa: PT011
            told(where)
        assert str(error.value) == line


SLURM = {
    'SLURM_JOB_ID': 4096 * 7 + 10,
    'SLURM_STEP_NODELIST': 'node[007-010,12]',
    'SLURM_NTASKS': 32,
    'SLURM_PROCID': 13,
    'SLURM_LOCALID': 5,
    'SLURM_STEP_TASKS_PER_NODE': '8(x4)',
}


@pytest.mark.parametrize(
    ('more', 'devices'),
    [
        ({}, [5]),
        # One task that drives all GPUs of its node, and tasks to which Slurm has given one each.
        ({'SLURM_STEP_TASKS_PER_NODE': '1(x32)', 'SLURM_LOCALID': 0}, None),
        ({'SLURM_STEP_TASKS_PER_NODE': '1,1', 'SLURM_LOCALID': 0}, None),
        ({'SLURM_STEP_TASKS_PER_NODE': '8(x3),1'}, [5]),
        ({'CUDA_VISIBLE_DEVICES': '3'}, None),
        ({'CUDA_VISIBLE_DEVICES': '0,1,2,3,4,5,6,7'}, [5]),
    ],
)
def test_slurm_is_found(bare, more, devices):
    bare(**SLURM | more)
    assert found() == Place('node007', 65536 - 4096 + 10, 32, 13, devices)


OPEN_MPI = {'OMPI_COMM_WORLD_SIZE': 4, 'OMPI_COMM_WORLD_RANK': 2, 'OMPI_COMM_WORLD_LOCAL_RANK': 1}


def test_open_mpi_is_found(bare):
    bare(**OPEN_MPI, OMPI_MCA_orte_hnp_uri='1531576320.0;tcp://10.96.0.1,10.148.0.1:34911')
    assert found() == Place('10.96.0.1', 65536 - 4096 + 1531576320 // 4096 % 4096, 4, 2, [1])
    bare(OMPI_COMM_WORLD_LOCAL_SIZE=1, JAX_COORDINATOR_PORT=1234)
    assert found() == Place('10.96.0.1', 1234, 4, 2, None)


def test_open_mpi_5_says_what_it_lacks(bare, monkeypatch):
    bare(**OPEN_MPI)
    monkeypatch.setitem(sys.modules, 'mpi4py', None)
    with pytest.raises(ValueError, match=r'Open MPI 5 .* \(pip install mpi4py\); tell HOST:PORT,N,I'):
        found()


@pytest.fixture
def tpu(monkeypatch):
    """A TPU VM whose metadata are those given."""
    from jax._src.clusters import cloud_tpu_cluster, cluster

    told_by_google = {}
    monkeypatch.setattr(cloud_tpu_cluster, 'running_in_cloud_tpu_vm', True)
    monkeypatch.setattr(cluster, 'running_in_cloud_tpu_vm', True)
    monkeypatch.setattr(
        cloud_tpu_cluster,
        'get_metadata',
        lambda key: (told_by_google.get(key, ''), 200 if key in told_by_google else 404),
    )
    return told_by_google


def test_a_tpu_vm_pod_is_found(bare, tpu):
    tpu |= {
        'agent-worker-number': '2',
        'worker-network-endpoints': 'a:b:127.0.0.1,a:b:127.0.0.2,a:b:127.0.0.3,a:b:127.0.0.4',
    }
    assert found() == Place('127.0.0.1', 8482, 4, 2)


def test_a_tpu_pod_of_kubernetes_is_found(bare, tpu):
    bare(TPU_WORKER_HOSTNAMES='localhost,other', TPU_WORKER_ID=1, TPU_SKIP_MDS_QUERY=1)
    assert found() == Place('localhost', 8482, 2, 1)


def test_a_kubernetes_job_is_found(bare, monkeypatch):
    from jax._src.clusters.k8s_cluster import K8sCluster

    def thing(**attributes):
        return types.SimpleNamespace(**attributes)

    owner = thing(controller=True, kind='Job')
    pod = thing(
        metadata=thing(labels={'job-name': 'localhost'}, owner_references=[owner], name='pod'),
        spec=thing(subdomain='vivit'),
    )
    job = thing(metadata=thing(name='vivit', labels={}), spec=thing(parallelism=4))
    # Where the package asks the cluster; what jax makes of the answers is its own.
    package = thing(
        config=thing(load_incluster_config=lambda: None),
        client=thing(
            CoreV1Api=lambda: None, BatchV1Api=lambda: None, exceptions=thing(ApiException=RuntimeError)
        ),
    )
    monkeypatch.setitem(sys.modules, 'kubernetes', package)
    monkeypatch.setattr(K8sCluster, '_pod', classmethod(lambda cls: pod))
    monkeypatch.setattr(K8sCluster, '_job', classmethod(lambda cls: job))
    monkeypatch.setattr(socket, 'gethostbyname', lambda name: {'vivit-0.vivit': '10.0.0.1'}[name])
    bare(KUBERNETES_SERVICE_HOST='10.0.0.9', JOB_COMPLETION_INDEX=3)
    assert found() == Place('vivit-0.vivit', 55527, 4, 3)


def test_kubernetes_without_its_package_is_told(bare, monkeypatch):
    monkeypatch.setitem(sys.modules, 'kubernetes', None)
    bare(KUBERNETES_SERVICE_HOST='10.0.0.9', JOB_COMPLETION_INDEX=3)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        with pytest.raises(
            ValueError, match=r"Kubernetes, but .* \(pip install 'jax\[k8s\]'\); tell HOST:PORT"
        ):
            found()
    assert not caught


def test_nothing_to_find_is_one_line(bare):
    with pytest.raises(ValueError) as error:  # noqa: PT011
        found()
    assert str(error.value) == (
        '--distributed found no cluster: no TPU VM, Slurm, Open MPI or Kubernetes tells of one; '
        'tell HOST:PORT,N,I, as --distributed=10.0.0.1:1234,2,0'
    )
    bare(SLURM_JOB_ID=7)
    with pytest.raises(ValueError, match='this is Slurm, but no task of it: start it by srun; tell HOST'):
        found()


def test_what_cannot_be_asked_is_one_line(bare, tpu):
    tpu |= {'agent-worker-number': '0', 'worker-network-endpoints': 'a:b'}
    with pytest.raises(
        ValueError, match=r'could not ask about the other processes \(ValueError: unsupported'
    ):
        found()


def test_one_process_joins_nobody(bare):
    distributed.join('127.0.0.1:1,1,0', SETTINGS)
    assert not distributed.several()
    assert distributed.agreed(None, last=False) is None
    assert distributed.agreed(15, last=False) == 15
    assert distributed.conclude(2, 'why') == 2


@pytest.mark.parametrize('seconds', ['soon', '0', '-1', 'nan', '1e9'])
def test_the_time_to_join_is_checked(seconds, bare):
    bare(**{distributed.JOIN_SECONDS: seconds})
    with pytest.raises(ValueError, match=rf"{distributed.JOIN_SECONDS}='{seconds}': must be seconds in"):
        distributed.join('127.0.0.1:1,1,0', SETTINGS)


# --- Meeting ---


def hello(process, processes=3, host='', **settings):
    return {
        'process': process,
        'count': processes,
        'host': host or f'host{process}',
        'settings': SETTINGS | settings,
    }


class Meeting:
    """Process 0 of three, which waits in a thread."""

    def __init__(self, seconds=20.0):
        self.told, self.links, self.error = [], None, None
        self.door = meeting.listen('127.0.0.1', 0)
        self.port = self.door.getsockname()[1]
        self._thread = threading.Thread(target=self._gather, args=(seconds,))
        self._thread.start()

    def _gather(self, seconds):
        try:
            self.links = meeting.Reception(self.door, 3, SETTINGS, self.told.append).gather(seconds)
            for link in self.links.values():
                link.send(welcome=99, hosts=['host0', 'host1', 'host2'])
        except (ValueError, meeting.Absent) as error:
            self.error = error

    def ended(self):
        self._thread.join(20)
        assert not self._thread.is_alive()
        self.door.close()
        for link in (self.links or {}).values():
            link.close()
        return self


@pytest.fixture
def report():
    """Reports to process 0 in a thread; returns what tells the outcome."""

    def start(port, word, seconds=20.0):
        outcome = []

        def run():
            try:
                outcome.append(
                    meeting.report_to('127.0.0.1', port, word, seconds=seconds, tell=outcome.append)
                )
            except (ValueError, meeting.Absent) as error:
                outcome.append(error)

        thread = threading.Thread(target=run)
        thread.start()

        def result():
            thread.join(20)
            assert not thread.is_alive()
            return outcome[-1]

        return result

    return start


def test_three_processes_meet(report):
    here = Meeting()
    # Strangers are sent away, and what they say is not acted upon.
    strangers = [socket.create_connection(('127.0.0.1', here.port)) for _ in range(4)]
    strangers[0].sendall(b'GET / HTTP/1.1\r\n\r\n')
    strangers[1].sendall(b'{"process": "1"}\n')
    strangers[2].sendall(b'[' * 100_000 + b'\n')
    results = [report(here.port, hello(process)) for process in (2, 1)]
    for result in results:
        link, answer = result()
        assert answer == {'welcome': 99, 'hosts': ['host0', 'host1', 'host2']}
        link.close()
    assert here.ended().links.keys() == {1, 2}
    assert {process: link.host for process, link in here.links.items()} == {1: 'host1', 2: 'host2'}
    for stranger in strangers:
        stranger.settimeout(10)
        assert stranger.recv(1) == b''
        stranger.close()


def test_who_is_missing_is_named(report, monkeypatch):
    monkeypatch.setattr(meeting, 'TOLD_AFTER', 0.5)
    here = Meeting(seconds=2)
    result = report(here.port, hello(1))
    assert str(here.ended().error) == 'process 2 of 3 did not come within 2 s'
    assert isinstance(here.error, meeting.Absent)
    assert here.told[-1].startswith('waiting for process 2 of 3 (')
    # The one that did come is told as well.
    assert str(result()) == 'process 2 of 3 did not come within 2 s'


def test_a_process_that_went_away_while_waiting_may_come_again(report):
    here = Meeting()
    first = socket.create_connection(('127.0.0.1', here.port))
    meeting.Link(first).send(**hello(1))
    assert first.recv(100) == b'{"noted": true}\n'
    first.close()
    results = [report(here.port, hello(process)) for process in (1, 2)]
    assert here.ended().links.keys() == {1, 2}
    for result in results:
        result()[0].close()


@pytest.mark.parametrize(
    ('word', 'line'),
    [
        (hello(1, 4), 'process 1 on host1 was started as one of 4 processes, process 0 as one of 3'),
        (hello(3), 'process 3 on host3: the others are numbered 1 to 2'),
        (hello(2, host='b'), 'process 2 on b is there already, on host2: each needs another number'),
        (
            hello(1, **{'config.model.width': '32', 'new': '1'}),
            'process 1 on host1 was started with config.model.width=32, process 0 with 16, and 1 more differ: '
            'start all alike',
        ),
    ],
)
def test_processes_that_do_not_fit_are_told_so_all_of_them(word, line, report):
    here = Meeting()
    first = socket.create_connection(('127.0.0.1', here.port))
    meeting.Link(first).send(**hello(2))
    assert first.recv(100) == b'{"noted": true}\n'
    result = report(here.port, word)
    assert str(here.ended().error) == str(result()) == line
    assert isinstance(result(), ValueError)
    assert line in first.recv(1000).decode()
    first.close()


def test_a_process_0_that_is_not_there_is_named(report, monkeypatch):
    monkeypatch.setattr(meeting, 'TOLD_AFTER', 0.5)
    with socket.create_server(('127.0.0.1', 0)) as door:
        port = door.getsockname()[1]
    result = report(port, hello(1), seconds=2)()
    assert isinstance(result, meeting.Absent)
    assert str(result) == f'process 0 cannot be reached at 127.0.0.1:{port} within 2 s (Connection refused)'


def test_somebody_else_at_the_port_is_named(report):
    with socket.create_server(('127.0.0.1', 0)) as door:
        port = door.getsockname()[1]
        result = report(port, hello(1), seconds=1)
        while True:
            door.settimeout(3)
            try:
                with door.accept()[0] as caller:
                    caller.sendall(b'SSH-2.0-OpenSSH_9.2\r\n')
                    caller.recv(10_000)
            except TimeoutError:
                break
        assert str(result()).endswith(' within 1 s (what answers is no process 0 that waits for others)')


def test_a_port_that_is_taken_is_named():
    with meeting.listen('127.0.0.1', 0) as door:
        port = door.getsockname()[1]
        with pytest.raises(
            ValueError, match=f'cannot listen at port {port} of .*: another program listens there'
        ):
            meeting.listen('127.0.0.1', port)
        with pytest.raises(ValueError, match=f'cannot listen at port {port} of '):
            meeting.listen('elsewhere.example', port)
    # It is free again at once, for a start after a crash.
    meeting.listen('127.0.0.1', port).close()


# --- The relay of jax's connection ---


def test_the_relay_passes_on_and_keeps_quiet_about_the_end():
    with socket.create_server(('127.0.0.1', 0)) as door:
        here = relay('127.0.0.1', door.getsockname()[1])
        near = socket.create_connection(('127.0.0.1', here))
        far, _ = door.accept()
    near.sendall(b'question')
    assert far.recv(100) == b'question'
    far.sendall(b'answer' * 50_000)
    near.settimeout(10)
    got = b''
    while len(got) < 300_000:
        got += near.recv(1 << 16)
    assert got == b'answer' * 50_000
    far.close()
    near.settimeout(0.5)
    with pytest.raises(TimeoutError):
        near.recv(1)
    # Nor does a new connection hear of it.
    again = socket.create_connection(('127.0.0.1', here))
    again.settimeout(0.5)
    with pytest.raises(TimeoutError):
        again.recv(1)
    near.close()
    again.close()


def test_the_relay_lets_who_is_too_early_try_again():
    with socket.create_server(('127.0.0.1', 0)) as door:
        port = door.getsockname()[1]
    near = socket.create_connection(('127.0.0.1', relay('127.0.0.1', port)))
    near.settimeout(10)
    assert near.recv(1) == b''
    near.close()
