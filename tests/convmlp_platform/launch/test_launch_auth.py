"""Ray's authentication is decided by us, by what was set and where the cluster is, never by a stale file."""

from __future__ import annotations

from pathlib import Path

import pytest

from convmlp_platform.errors import LaunchError
from convmlp_platform.launch.cluster import auth


@pytest.fixture(autouse=True)
def stale_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder in which an earlier Ray has left its token."""
    token = tmp_path / ".ray" / "auth_token"
    token.parent.mkdir()
    token.write_text("of-an-earlier-cluster")
    monkeypatch.setenv("HOME", str(tmp_path))
    return token


def test_a_ray_of_ours_gets_a_token_of_its_own_each_time() -> None:
    first, second = auth.settle(None, {}), auth.settle(None, {})
    assert first["RAY_AUTH_MODE"] == second["RAY_AUTH_MODE"] == "token"
    assert len({first["RAY_AUTH_TOKEN"], second["RAY_AUTH_TOKEN"], "of-an-earlier-cluster"}) == 3


@pytest.mark.parametrize(
    "address", ["127.0.0.1:6379", "localhost:6379", "ray://127.0.0.5:10001", "[::1]:6379", "auto"]
)
def test_loopback_without_a_token_is_explicitly_disabled(address: str) -> None:
    assert auth.settle(address, {}) == {"RAY_AUTH_MODE": "disabled"}


def test_beyond_loopback_a_token_is_needed() -> None:
    with pytest.raises(LaunchError, match=r"10\.0\.0\.7:6379.*RAY_AUTH_TOKEN=.*RAY_AUTH_MODE=disabled"):
        auth.settle("10.0.0.7:6379", {})
    assert auth.settle("10.0.0.7:6379", {"RAY_AUTH_TOKEN": "t"}) == {"RAY_AUTH_MODE": "token"}
    assert auth.settle("10.0.0.7:6379", {"RAY_AUTH_MODE": "disabled"}) == {"RAY_AUTH_MODE": "disabled"}


def test_a_token_file_must_hold_a_token(tmp_path: Path) -> None:
    file = tmp_path / "token"
    with pytest.raises(LaunchError, match="can't be read"):
        auth.settle("10.0.0.7:6379", {"RAY_AUTH_TOKEN_PATH": str(file)})
    file.write_text("\n")
    with pytest.raises(LaunchError, match="empty"):
        auth.settle("10.0.0.7:6379", {"RAY_AUTH_TOKEN_PATH": str(file)})
    file.write_text("secret\n")
    assert auth.settle("10.0.0.7:6379", {"RAY_AUTH_TOKEN_PATH": str(file)}) == {"RAY_AUTH_MODE": "token"}


def test_token_mode_without_any_token(stale_token: Path) -> None:
    asked = {"RAY_AUTH_MODE": "token"}
    assert (
        auth.settle("10.0.0.7:6379", asked) == asked
    )  # asked for by name: Ray's own file is the user's choice
    stale_token.unlink()
    with pytest.raises(LaunchError, match="there is no token"):
        auth.settle("10.0.0.7:6379", asked)


def test_inside_a_job_the_cluster_decides() -> None:
    job = {"RAY_JOB_CONFIG_JSON_ENV_VAR": "{}"}
    assert auth.settle("10.0.0.7:6379", job) == {"RAY_AUTH_MODE": "disabled"}
    assert auth.settle("10.0.0.7:6379", job | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "t"}) == {
        "RAY_AUTH_MODE": "token"
    }


def test_an_unknown_mode_is_refused() -> None:
    with pytest.raises(LaunchError, match="must be token or disabled"):
        auth.settle(None, {"RAY_AUTH_MODE": "yes"})
