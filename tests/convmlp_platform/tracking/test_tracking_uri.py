from __future__ import annotations

import socket
from pathlib import Path

import pytest

from convmlp_platform.config.sections.execution import TrackingSection
from convmlp_platform.tracking.environment_tags import environment_tags
from convmlp_platform.tracking.mlflow.tracking_uri import artifact_location, check_tracking, tracking_uri


def test_environment_wins_over_the_job_over_the_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONVMLP_ROOT", str(tmp_path))
    assert tracking_uri(TrackingSection()) == f"sqlite:///{tmp_path}/mlflow.db"
    assert artifact_location(tracking_uri()) == (tmp_path / "mlartifacts").as_uri()
    assert tracking_uri(TrackingSection(uri="sqlite:///sub/x.db")) == f"sqlite:///{tmp_path}/sub/x.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://server:5000")
    assert tracking_uri(TrackingSection(uri="sqlite:///x.db")) == "http://server:5000"


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("file:///tmp/mlruns", "no longer writes to plain folders"),
        ("./mlruns", "no longer writes to plain folders"),
        ("ftp://user:secret@host", "knows no ftp: stores"),
        ("sqlite:/x.db", "three slashes"),
        ("sqlite:////proc/none/mlflow.db", "no permission|not what it should be"),
    ],
)
def test_an_impossible_address_is_a_problem(uri: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if "proc" in uri:
        monkeypatch.setattr("os.access", lambda *_: False)  # root may write anywhere
    (problem,) = check_tracking(TrackingSection(uri=uri))
    assert problem.startswith("tracking.uri (=")
    assert any(part in problem for part in message.split("|")) and "secret" not in problem


def test_a_good_address_is_no_problem(tmp_path: Path) -> None:
    assert check_tracking(TrackingSection(uri=f"sqlite:///{tmp_path}/a/b/mlflow.db")) == []
    assert list(tmp_path.iterdir()) == []


def test_a_server_that_is_down_is_only_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    assert check_tracking(TrackingSection(uri=f"http://127.0.0.1:{port}")) == []
    assert "doesn't answer" in caplog.text


def test_environment_tags_name_code_and_libraries() -> None:
    tags = environment_tags()
    assert {"python.version", "torch.version", "host.name"} <= set(tags)
    assert "git.commit" in tags or "code.version" in tags
