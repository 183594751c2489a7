"""An object store in a folder, for several processes: `bucket://here/path/...`. Objects appear whole, or not at all."""

from __future__ import annotations

import os
import threading
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

Handler = Callable[[str, str, Callable[[], Any]], Any]
"""Gets a request (LIST, HEAD, GET, PUT, DELETE), its path and how to carry it out; returns the answer."""


class Bucket(LocalFileSystem):
    """Requests go through `handler`, where there is one."""

    protocol = "bucket"
    cachable = False
    handler: Handler | None = None
    _inside = threading.local()

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        if isinstance(path, list):
            return [cls._strip_protocol(one) for one in path]
        return super()._strip_protocol(str(path).removeprefix("bucket://here"))

    def _request(self, method: str, path: Any, call: Callable[[], Any]) -> Any:
        if getattr(self._inside, "one", False):  # a part of another request
            return call()

        def alone() -> Any:
            self._inside.one = True
            try:
                return call()
            finally:
                self._inside.one = False

        handler = type(self).handler
        return alone() if handler is None else handler(method, self._strip_protocol(path), alone)

    def glob(self, path: str, *args: Any, **named: Any) -> Any:
        return self._request("LIST", path, lambda: super(Bucket, self).glob(path, *args, **named))

    def find(self, path: str, *args: Any, **named: Any) -> Any:
        return self._request(
            "LIST", path, lambda: self._objects(super(Bucket, self).find(path, *args, **named))
        )

    def _objects(self, found: Any) -> Any:
        """Without uploads that aren't finished."""
        names = [name for name in found if ".upload-" not in name]
        return {name: found[name] for name in names} if isinstance(found, dict) else names

    def info(self, path: str, **named: Any) -> Any:
        return self._request("HEAD", path, lambda: super(Bucket, self).info(path, **named))

    def cat_file(self, path: str, *args: Any, **named: Any) -> Any:
        return self._request("GET", path, lambda: super(Bucket, self).cat_file(path, *args, **named))

    def rm_file(self, path: str) -> None:
        self._request("DELETE", path, lambda: Path(self._strip_protocol(path)).unlink())

    def open(self, path: str, mode: str = "rb", **named: Any) -> Any:
        return super().open(path, mode, **named) if mode == "rb" else Upload(self, path)

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **named: Any) -> None:
        upload = Upload(self, path)
        upload.write(value)
        upload.commit(new=mode == "create")


class Upload:
    """As fsspec's file of an object store, opened with autocommit=False."""

    def __init__(self, bucket: Bucket, path: str) -> None:
        self._bucket, self._path, self._content, self.closed = (
            bucket,
            Path(bucket._strip_protocol(path)),
            b"",
            False,
        )

    def write(self, data: Any) -> None:
        self._content += bytes(data)

    def close(self) -> None:
        self.closed = True

    def discard(self) -> None:
        self._content = b""

    def commit(self, new: bool = False) -> None:
        def put() -> None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            temporary = self._path.with_name(f".upload-{uuid.uuid4().hex}")
            temporary.write_bytes(self._content)
            try:
                if new:
                    os.link(temporary, self._path)
                else:
                    temporary.replace(self._path)
            finally:
                temporary.unlink(missing_ok=True)

        self._bucket._request("PUT", str(self._path), put)


fsspec.register_implementation("bucket", Bucket, clobber=True)
