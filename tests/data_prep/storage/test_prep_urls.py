"""URLs as they may be shown: without what may be a secret."""

from __future__ import annotations

import pytest

from data_prep.storage.urls import scrubbed, shown


@pytest.mark.parametrize(
    "url, expected",
    [
        ("http://me:pw@host:1/x?token=1#part", "http://host:1/x"),
        ("HTTPS://me:pw@host/x", "HTTPS://host/x"),
        ("http://me:p@w@host/x", "http://host/x"),
        ("s3://key:secret@bucket/x", "s3://bucket/x"),
        ("postgresql+psycopg://me:pw@host/db", "postgresql+psycopg://host/db"),
        ("http://[::1]:80/x?token=1", "http://[::1]:80/x"),
        ("http://[::1/x?token=1", "http://[::1/x"),
        ("sqlite:////var/mlflow.db", "sqlite:////var/mlflow.db"),
        ("https://host/a@b", "https://host/a@b"),
        ("models:/name@champion", "models:/name@champion"),
        ("/folder/what?", "/folder/what?"),
    ],
)
def test_a_url_loses_what_may_be_a_secret(url: str, expected: str) -> None:
    assert shown(url) == expected
    assert scrubbed(f"can't read {url}") == f"can't read {expected}"


def test_a_text_keeps_all_else() -> None:
    said = "GET (http://me:it's@host/x?sig=1) and [\"s3://a:b@bucket/x\"] failed; me@host didn't"
    assert scrubbed(said) == 'GET (http://host/x) and ["s3://bucket/x"] failed; me@host didn\'t'
