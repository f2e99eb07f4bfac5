"""How the processes of one training notice that one of them has died.

Every rank keeps a TCP connection to rank 0. The system closes it with its process, however that ends, and keep-alive
probes find out when a machine is gone without a word (after about a minute). Nothing else is ever sent on it. It is
needed beside MLX's ring, which mostly raises an error when a neighbour dies, but in about one of twenty kills waits
for ever instead (MLX 0.32 on Linux, three processes).
"""

from __future__ import annotations

import contextlib
import secrets
import socket
import threading
import time

SECRET = 16  # bytes that a connection must begin with: whoever else finds the port is not one of us
WAIT = 10.0  # seconds in which a connection must be made, and must show the secret
PROBES = (("TCP_KEEPIDLE", 20), ("TCP_KEEPALIVE", 20), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 4))  # KEEPALIVE: macOS


class Lifeline:
    """One end of it; `lost` is set once a connection has ended. Threads of its own do the waiting."""

    def __init__(self) -> None:
        self.lost = threading.Event()
        self._sockets: list[socket.socket] = []

    @classmethod
    def listen(cls, host: str) -> tuple[Lifeline, int, bytes]:
        """Rank 0's end, and the port and the secret that the others need. Raises `OSError`."""
        line = cls()
        listener = socket.create_server((host, 0), family=_family(host))
        line._sockets.append(listener)
        secret = secrets.token_bytes(SECRET)
        threading.Thread(target=line._accept, args=(listener, secret), daemon=True, name="lifeline").start()
        return line, listener.getsockname()[1], secret

    @classmethod
    def connect(cls, host: str, port: int, secret: bytes) -> Lifeline:
        """The end of another rank. Raises `OSError` where rank 0 cannot be reached."""
        line = cls()
        connection = socket.create_connection((host, port), timeout=WAIT)
        line._sockets.append(connection)
        connection.sendall(secret)
        threading.Thread(target=line._hold, args=(connection,), daemon=True, name="lifeline").start()
        return line

    def close(self) -> None:
        """Let go: the other end takes this process for dead."""
        for s in self._sockets:
            with contextlib.suppress(OSError):
                s.shutdown(socket.SHUT_RDWR)  # closing alone would not wake the thread that reads
            s.close()

    def _accept(self, listener: socket.socket, secret: bytes) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:  # closed
                return
            threading.Thread(target=self._greet, args=(connection, secret), daemon=True, name="lifeline").start()

    def _greet(self, connection: socket.socket, secret: bytes) -> None:
        with contextlib.suppress(OSError):
            if _read(connection, len(secret), WAIT) == secret:
                self._sockets.append(connection)
                self._hold(connection)
                return
        connection.close()

    def _hold(self, connection: socket.socket) -> None:
        """Wait until the other end is gone."""
        with contextlib.suppress(OSError):
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for name, seconds in PROBES:
                if hasattr(socket, name):
                    connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), seconds)
            connection.settimeout(None)
            while connection.recv(64):
                pass
        self.lost.set()


def _read(connection: socket.socket, size: int, seconds: float) -> bytes:
    """The first `size` bytes, or fewer where the other end stops. Raises `OSError` after `seconds`."""
    got, deadline = b"", time.monotonic() + seconds
    while len(got) < size:
        connection.settimeout(max(deadline - time.monotonic(), 0.001))
        if not (more := connection.recv(size - len(got))):
            break
        got += more
    return got


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET
