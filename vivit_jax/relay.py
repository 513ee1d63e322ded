"""A connection to process 0 that does not break: jax's own, led through this process.

jax's client ends its process with a stack trace as soon as its connection to process 0 closes, before anybody can
say what happened. It is given an address of this machine instead, from which everything is passed on. When process 0
is gone the client waits for its answers; the watchdog sees the end of its own connection and ends the process in a
line.
"""

import contextlib
import socket
import threading

CHUNK = 1 << 16
CONNECT_SECONDS = 10.0


def relay(host: str, port: int) -> int:
    """Passes on what is sent to a port of this machine, as long as the process lives.

    Args:
        host: Where to.
        port: Its port.

    Returns:
        The port at 127.0.0.1.
    """
    door = socket.create_server(('127.0.0.1', 0))
    threading.Thread(target=_serve, args=(door, host, port), name='relay', daemon=True).start()
    return door.getsockname()[1]


def _serve(door: socket.socket, host: str, port: int) -> None:
    kept = []  # a socket that is forgotten is closed
    reached = False
    while True:
        near, _ = door.accept()
        try:
            far = socket.create_connection((host, port), timeout=CONNECT_SECONDS)
        except OSError:
            # Not there yet, so that the client tries again; or not any more, which it is not to hear of.
            if reached:
                kept.append(near)
            else:
                near.close()
            continue
        reached = True
        far.settimeout(None)
        kept += [near, far]
        for source, sink in ((near, far), (far, near)):
            sink.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=_pass_on, args=(source, sink), name='relay', daemon=True).start()


def _pass_on(source: socket.socket, sink: socket.socket) -> None:
    """Copies until an end is closed; the other one stays as it is."""
    with contextlib.suppress(OSError):
        while data := source.recv(CHUNK):
            sink.sendall(data)
