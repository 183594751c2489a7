"""A real S3 server in this process (moto's), and a proxy before it that counts bytes and injects faults."""

from __future__ import annotations

import os
import socket
import struct
import threading
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

import pytest

BUCKET = "datasets"
_ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "testing",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_MAX_ATTEMPTS": "1",  # botocore's own retries take seconds; what is tested is ours
}


@contextmanager
def s3_server() -> Iterator[S3Proxy]:
    """An S3 server with one empty bucket, reached through a proxy; the environment points at it meanwhile."""
    server_module = pytest.importorskip("moto.server", reason="needs moto[server]")
    pytest.importorskip("s3fs", reason="needs s3fs")
    import logging

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = server_module.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    # moto keeps its buckets for the life of the process.
    urllib.request.urlopen(
        urllib.request.Request(f"http://{host}:{port}/moto-api/reset", method="POST")
    ).close()
    proxy = S3Proxy((host, port))
    before = {name: os.environ.get(name) for name in (*_ENVIRONMENT, "AWS_ENDPOINT_URL", "AWS_PROFILE")}
    os.environ.pop("AWS_PROFILE", None)
    os.environ |= _ENVIRONMENT | {"AWS_ENDPOINT_URL": proxy.url}
    forget_filesystems()
    try:
        import s3fs

        s3fs.S3FileSystem(skip_instance_cache=True).mkdir(BUCKET)
        yield proxy
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        forget_filesystems()
        proxy.close()
        server.stop()


def forget_filesystems() -> None:
    """Those made for another server."""
    import fsspec

    from data_prep.storage import remote_files

    remote_files._filesystems.clear()
    for protocol in ("s3", "http"):
        fsspec.get_filesystem_class(protocol).clear_instance_cache()


@dataclass
class Faults:
    """What goes wrong with the next GET requests of objects; each list is used up from its front."""

    statuses: list[int] = field(default_factory=list)
    """Answered in the server's place."""
    cuts: int = 0
    """Answers cut in their middle."""
    always: int | None = None
    """A status for every request."""
    hold: threading.Event | None = None
    """Answers wait for it."""
    decide: Callable[[str, str], int | Literal["reset", "cut"] | None] = lambda method, path: None
    """Of any request: a status to answer in the server's place, the connection reset, or the answer cut."""


class S3Proxy:
    """Forwards whole HTTP exchanges, a connection each, and writes down what objects were asked for.

    Attributes:
        requests: (path, range header) of each GET that was answered by the server.
        body_bytes: bytes of bodies sent to clients for GETs.
    """

    def __init__(self, server: tuple[str, int]) -> None:
        self.server, self.faults = server, Faults()
        self.requests: list[tuple[str, str]] = []
        self.body_bytes = 0
        self.asked = threading.Event()
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def reset(self) -> None:
        """Forget what was counted, and all faults."""
        with self._lock:
            self.faults, self.requests, self.body_bytes = Faults(), [], 0
        self.asked.clear()

    def close(self) -> None:
        """Accept nothing more."""
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client:
            try:
                while self._exchange(client):
                    pass
            except OSError:
                return

    def _exchange(self, client: socket.socket) -> bool:
        """One request and its answer; whether the connection may serve another."""
        reader = client.makefile("rb")
        head = _head(reader)
        if not head:
            return False
        method, path = head[0].split(b" ")[:2]
        fields = {k.strip().lower(): v.strip() for k, _, v in (line.partition(b":") for line in head[1:])}
        if fields.get(b"expect", b"").lower() == b"100-continue":
            client.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        body = _body(reader, fields)
        wanted = method == b"GET" and path.count(b"/") > 1 and b"?list-type" not in path
        fault = self.faults.decide(method.decode(), path.decode())
        if fault == "reset":
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            return False
        status, cut = self._fault() if wanted else (None, False)
        if isinstance(fault, int):
            status = fault
        cut |= fault == "cut"
        if status is not None:
            client.sendall(_ERROR % (status, 0))
            return False
        answer = self._forward(head, fields, body)
        if wanted:
            place, part = path.decode(), fields.get(b"range", b"").decode()
            with self._lock:
                self.requests.append((place, part))
                self.body_bytes += len(answer) - answer.index(b"\r\n\r\n") - 4
            self.asked.set()
            if self.faults.hold is not None:
                self.faults.hold.wait()
        if cut:
            client.sendall(answer[: len(answer) * 2 // 3])
            return False
        client.sendall(answer)
        return False

    def _fault(self) -> tuple[int | None, bool]:
        with self._lock:
            if self.faults.always is not None:
                return self.faults.always, False
            if self.faults.statuses:
                return self.faults.statuses.pop(0), False
            if self.faults.cuts:
                self.faults.cuts -= 1
                return None, True
        return None, False

    def _forward(self, head: list[bytes], fields: dict[bytes, bytes], body: bytes) -> bytes:
        kept = [
            line
            for line in head
            if not line.lower().startswith((b"connection:", b"expect:", b"transfer-enc"))
        ]
        if b"transfer-encoding" in fields:
            kept.append(b"Content-Length: %d" % len(body))
        with socket.create_connection(self.server) as server:
            server.sendall(b"\r\n".join([*kept, b"Connection: close", b"", b""]) + body)
            answer = bytearray()
            while piece := server.recv(1 << 20):
                answer += piece
        return bytes(answer)


_ERROR = b"HTTP/1.1 %d Injected\r\nContent-Length: %d\r\nConnection: close\r\n\r\n"


def _head(reader: object) -> list[bytes]:
    lines: list[bytes] = []
    while line := reader.readline().rstrip(b"\r\n"):  # type: ignore[attr-defined]
        lines.append(line)
    return lines


def _body(reader: object, fields: dict[bytes, bytes]) -> bytes:
    if b"content-length" in fields:
        return reader.read(int(fields[b"content-length"]))  # type: ignore[attr-defined,no-any-return]
    if fields.get(b"transfer-encoding") != b"chunked":
        return b""
    content = bytearray()
    while size := int(reader.readline().split(b";")[0], 16):  # type: ignore[attr-defined]
        content += reader.read(size)  # type: ignore[attr-defined]
        reader.readline()  # type: ignore[attr-defined]
    while reader.readline().strip():  # type: ignore[attr-defined]
        pass
    return bytes(content)
