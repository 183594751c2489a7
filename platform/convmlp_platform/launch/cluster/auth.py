"""The choice of Ray's authentication. It never depends on files that an earlier start left on the machine.

By default, Ray writes `~/.ray/auth_token` at the first local start. From then on it starts some of its processes in
token mode and others not, so that the second start on a machine fails. Every process that we
start therefore gets RAY_AUTH_MODE, and its token, through its environment. See docs/decisions/0006.
"""

from __future__ import annotations

import ipaddress
import os
import secrets
from collections.abc import Mapping
from pathlib import Path

from convmlp_platform.errors import LaunchError
from convmlp_platform.launch.cluster import ray_internals

MODE, TOKEN, TOKEN_PATH = "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"
# Set by Ray's job manager in the environment of a job's entrypoint.
JOB_MARKER = "RAY_JOB_CONFIG_JSON_ENV_VAR"


def settle(address: str | None, environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """The authentication variables for a Ray at `address`; None is a Ray that we are about to start.

    Decided in this order:
    1. RAY_AUTH_MODE, where the user or the cluster has set it (token mode then needs its token);
    2. a Ray of our own: token mode with a token made for it, which dies with it, as every user of the machine
       reaches its ports, and where it has several nodes other machines do too;
    3. a token given by RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH: token mode;
    4. inside a Ray job without RAY_AUTH_MODE, or a cluster on loopback: disabled;
    5. anything beyond loopback: LaunchError, because it needs the cluster's token.
    """
    env = os.environ if environment is None else environment
    given = env.get(MODE, "").lower()
    if given not in ("", "token", "disabled"):
        raise LaunchError(f"{MODE} (={env[MODE]!r}) must be token or disabled")
    if given == "disabled":
        return {MODE: "disabled"}
    has_token = _has_token(env)
    if address is None:
        return {MODE: "token"} if has_token else {MODE: "token", TOKEN: secrets.token_hex(32)}
    if has_token:
        return {MODE: "token"}
    if given == "token":
        # Asked for by name, so the file that `ray get-auth-token --generate` made is the user's own choice.
        if (Path.home() / ".ray" / "auth_token").is_file():
            return {MODE: "token"}
        raise LaunchError(f"{MODE} is token, but there is no token: export {TOKEN}=... (the cluster's own)")
    if JOB_MARKER in env or is_loopback(address):
        return {MODE: "disabled"}
    raise LaunchError(
        f"the Ray cluster at {address} is beyond this machine, so Ray's token authentication is on: "
        f"export {TOKEN}=... or {TOKEN_PATH}=FILE (the cluster's token), "
        f"or {MODE}=disabled if that cluster runs without"
    )


def apply(address: str | None) -> None:
    """Put `settle(address)` into this process's environment, which its children inherit."""
    os.environ.update(settle(address))
    ray_internals.read_auth_again()


def is_loopback(address: str) -> bool:
    """Whether `host:port`, `ray://host:port` or `auto` (a cluster started here) is on this machine's
    loopback.
    """
    if address == "auto":
        return True
    host = address.rsplit("//", 1)[-1].rsplit(":", 1)[0].strip("[]")
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _has_token(env: Mapping[str, str]) -> bool:
    if env.get(TOKEN):
        return True
    path = env.get(TOKEN_PATH)
    if not path:
        return False
    try:
        found = bool(Path(path).read_text().strip())
    except OSError as error:
        raise LaunchError(f"{TOKEN_PATH} (={path}) can't be read: {error.strerror}") from error
    if not found:
        raise LaunchError(f"{TOKEN_PATH} (={path}) is an empty file; it must hold the cluster's token")
    return True
