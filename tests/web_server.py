"""A plain web server over a folder, with or without range requests, that counts what it sends."""

from __future__ import annotations

import http.server
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any


class WebServer:
    """`url` of the folder; `requests` and `body_bytes` of what was sent since the last `reset`.

    While `away` every connection is closed without an answer.
    """

    def __init__(self) -> None:
        self.url, self.requests, self.body_bytes = "", list[tuple[str, str]](), 0
        self.away = False
        self.lock = threading.Lock()

    def reset(self) -> None:
        """Forget what was counted."""
        with self.lock:
            self.requests, self.body_bytes = [], 0


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def __init__(self, *args: Any, folder: Path, ranges: bool, server_state: WebServer) -> None:
        self.folder, self.ranges, self.state = folder, ranges, server_state
        super().__init__(*args)

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        if self.state.away:
            self.close_connection = True
            return
        path = self.folder / self.path.partition("?")[0].lstrip("/")
        if not path.is_file():
            self.send_response(404)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        start, end = 0, path.stat().st_size
        part = self.headers.get("Range", "")
        found = re.fullmatch(r"bytes=(\d+)-(\d+)", part) if self.ranges else None
        if found:
            start, end = int(found[1]), min(int(found[2]) + 1, end)
        self.send_response(206 if found else 200)
        self.send_header("Content-Length", str(end - start))
        self.end_headers()
        if body:
            with self.state.lock:
                self.state.requests.append((self.path, part))
                self.state.body_bytes += end - start
            with path.open("rb") as file:
                file.seek(start)
                self.wfile.write(file.read(end - start))

    def log_message(self, *_: object) -> None:
        """Quiet."""


class _Server(http.server.ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that are killed are no news."""


@contextmanager
def web_server(folder: Path, *, ranges: bool = True) -> Iterator[WebServer]:
    """Serve a folder on this machine for as long as the block lasts."""
    state = WebServer()
    handler = partial(_Handler, folder=folder, ranges=ranges, server_state=state)
    server = _Server(("127.0.0.1", 0), handler)
    state.url = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
