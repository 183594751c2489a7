"""Locations of files: paths and URLs, and how a URL may be printed."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit, urlunsplit

# Not by urllib: these texts may be anything, and it raises for some and drops slashes of others.
_USER_INFO = re.compile(r"(?i)\b([a-z][a-z0-9+.-]*://)[^\s/]*@")
_QUERY = re.compile(r"(?i)\b([a-z][a-z0-9+.-]*://(?:\[[0-9a-f:.%]*\])?[^\s'\"<>)\]?#]*)[?#][^\s'\"<>)\]]*")


def is_url(location: str) -> bool:
    """Whether this names remote storage rather than a file or folder."""
    return "://" in location


def local_path(location: str) -> Path | None:
    """The path that a plain path or a `file://` URL names; None for other URLs."""
    if not is_url(location):
        return Path(location)
    parts = urlsplit(location)
    return Path(unquote(parts.path)) if parts.scheme in ("file", "local") else None


def shown(url: str) -> str:
    """The URL as it may be printed: no user, password or query, which may hold secrets. Paths stay as they are."""
    if not is_url(url):
        return url
    return re.split(r"[?#]", _USER_INFO.sub(r"\1", url, count=1), maxsplit=1)[0]


def join_url(url: str, name: str) -> str:
    """The URL of a file in the folder `url`; a query (such as an access token) stays."""
    parts = urlsplit(url)
    name = quote(name) if parts.scheme in ("http", "https") else name
    return urlunsplit(parts._replace(path=f"{parts.path.rstrip('/')}/{name}"))


def scrubbed(text: str) -> str:
    """A text without the user info and queries of the URLs in it."""
    # First the user info alone: a password may hold what would end a URL.
    return _QUERY.sub(r"\1", _USER_INFO.sub(r"\1", text))
