"""Starting several processes on this machine: what they say, what they are told, how they end."""

import os
import re
import signal
import sys
import threading
import time

import pytest
from conftest import load_tool


@pytest.fixture(scope='session')
def tool():
    return load_tool('launch_local')


@pytest.fixture
def launch(tool, capfd):
    """Runs a program in place of the main command; returns the exit code and the two outputs, sorted lines."""

    def run(code, count=2, **more):
        result = tool.launch(['--option'], count, program=(sys.executable, '-c', code), **more)
        captured = capfd.readouterr()
        return result, sorted(captured.out.splitlines()), sorted(captured.err.splitlines())

    return run


SAY = 'import sys, os; where = sys.argv[-1]; number = where[-1];'


def test_each_process_is_told_its_place_and_speaks_with_its_number(launch):
    code = SAY + (
        'print(sys.argv[1], where, os.environ["JAX_PLATFORMS"], os.environ["JAX_NUM_CPU_DEVICES"]);'
        'print("also", file=sys.stderr)'
    )
    result, out, err = launch(code, count=3, devices=4, port=1234)
    assert result == 0
    assert out == [f'[{i}] --option --distributed=127.0.0.1:1234,3,{i} cpu 4' for i in range(3)]
    assert err == ['[0] also', '[1] also', '[2] also']


def test_lines_come_as_they_are_said(launch):
    """Not when the process ends; and what is no UTF-8, or has no end, does no harm."""
    code = SAY + 'print("first"); sys.stdout.buffer.write(b"\\xff last"); sys.stdout.flush(); os._exit(0)'
    assert launch(code)[:2] == (0, ['[0] first', '[0] \ufffd last', '[1] first', '[1] \ufffd last'])


def test_the_exit_code_is_that_of_the_first_that_failed(launch):
    code = SAY + 'import time; time.sleep(0.2 if number == "1" else 3); sys.exit(int(number) + 2)'
    assert launch(code)[0] == 3
    killed = (
        SAY
        + 'import signal, time; time.sleep(2 * (1 - int(number))); number == "1" and os.kill(os.getpid(), 9)'
    )
    assert launch(killed)[0] == 137


def test_what_is_left_is_killed(launch, tool, monkeypatch):
    monkeypatch.setattr(tool, 'PATIENCE', 1.0)
    code = SAY + (
        'import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN);'
        'number == "0" and sys.exit(75); print(os.getpid(), flush=True); time.sleep(100)'
    )
    began = time.monotonic()
    result, out, err = launch(code)
    assert time.monotonic() - began < 60
    assert result == 75
    assert 'process 1 did not end: killed' in err
    with pytest.raises(ProcessLookupError):
        os.kill(int(out[0].removeprefix('[1] ')), 0)


@pytest.mark.parametrize('signum', [signal.SIGINT, signal.SIGTERM])
def test_signals_go_to_all(signum, launch, tmp_path, monkeypatch):
    before = signal.getsignal(signum)
    code = SAY + (
        'import signal, time;'
        'signal.signal(signal.SIGINT, lambda *_: sys.exit(130));'
        'signal.signal(signal.SIGTERM, lambda *_: sys.exit(143));'
        'open(os.environ["READY"] + number, "w").close(); time.sleep(100)'
    )
    monkeypatch.setenv('READY', f'{tmp_path}/')

    def send():
        while len(list(tmp_path.iterdir())) < 2:
            time.sleep(0.05)
        os.kill(os.getpid(), signum)

    threading.Thread(target=send).start()
    assert launch(code)[0] == 128 + signum
    assert signal.getsignal(signum) == before


def test_a_mistake_of_the_main_command_is_its_own(tool, capfd, monkeypatch):
    """The real command, which does not come as far as looking for the others."""
    monkeypatch.setattr(sys, 'argv', ['launch_local.py', '--', '--config=nothing.py'])
    assert tool.main() == 2
    lines = sorted(capfd.readouterr().err.splitlines())
    assert [line[:10] for line in lines] == ['[0] error:', '[1] error:']


def test_mistakes_of_its_own(refused):
    for options, line in (
        (['-n', '0', '--', '--config=x'], '--processes=0: must be in [1, 256]'),
        (['--devices=0', '--', '--config=x'], '--devices=0: must be in [1, 256]'),
        (['--', '--config=x', '--distributed'], '--distributed is what this program says to each process'),
        ([], 'the following arguments are required: -- OPTION'),
    ):
        assert re.search(re.escape(line), refused(*options))
