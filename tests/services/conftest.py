"""Servers for these tests, started once: S3, PostgreSQL, and an MLflow on both that asks for a log-in over TLS."""

from __future__ import annotations

import os
from collections.abc import Iterator

import boto3
import pytest
from mlflow_service import ADMIN, BUCKET, PASSWORD, MlflowService
from postgres_server import Postgres, postgres_server
from private_authority import Authority, private_authority
from s3_server import s3_server

_OF_A_USER = ("MLFLOW_TRACKING_", "MLFLOW_REGISTRY_URI", "CONVMLP_ROOT", "CONVMLP_USER")


@pytest.fixture(scope="session", autouse=True)
def nothing_from_outside() -> Iterator[None]:
    """No address, no log-in, no root of whoever runs the tests."""
    before = {name: os.environ.pop(name) for name in list(os.environ) if name.startswith(_OF_A_USER)}
    yield
    os.environ.update(before)


@pytest.fixture(scope="session")
def s3() -> Iterator[str]:
    """The address of an S3 server with one bucket, also in the environment."""
    with s3_server() as proxy, pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_S3_ENDPOINT_URL", proxy.url)
        patch.setenv("AWS_MAX_ATTEMPTS", "3")
        boto3.client("s3").create_bucket(Bucket=BUCKET)
        yield proxy.url


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    with postgres_server() as server:
        yield server


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return private_authority(tmp_path_factory.mktemp("authority"), "a company")


@pytest.fixture(scope="session")
def service(
    s3: str, postgres: Postgres, authority: Authority, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[MlflowService]:
    """MLflow on PostgreSQL and S3, with log-in and TLS."""
    folder = tmp_path_factory.mktemp("service")
    options = ["--artifacts-destination", f"s3://{BUCKET}/artifacts"]
    with MlflowService(folder, postgres.uri("mlflow"), options, authority=authority, auth=True) as running:
        yield running


@pytest.fixture
def as_user(service: MlflowService, authority: Authority, monkeypatch: pytest.MonkeyPatch) -> MlflowService:
    """The service, with this process's environment as a user's who may use it."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", service.uri)
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", ADMIN)
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", PASSWORD)
    monkeypatch.setenv("MLFLOW_TRACKING_SERVER_CERT_PATH", str(authority.certificate))
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    return service
