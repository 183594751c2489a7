from __future__ import annotations

import time

import pytest

from data_prep.storage.secret_texts import REPLACEMENT, is_secret_name, redacted

AWS = "AKIA" + "ABCDEFGHIJKLMNOP"
GITHUB = "ghp_" + "a1B2" * 9


@pytest.mark.parametrize(
    "line",
    [
        "+AWS_SECRET_ACCESS_KEY=planted",
        "+  export RAY_AUTH_TOKEN=planted",
        '+password = "planted"',
        "+    os.environ['MLFLOW_TRACKING_PASSWORD'] = 'planted'",
        '+  "api_key": "planted",',
        "+  api-key: planted",
        "+#  api_key: planted",
        "-  - token: planted",
        "+client = Client(access_key='planted')",
        "+uri = 'http://someone:planted@host/x'",
        "+uri = 'https://host/x?X-Amz-Signature=planted'",
        "+Authorization: Bearer planted",
        '+headers = {"Authorization": "Basic planted"}',
    ],
)
def test_a_secret_is_replaced(line: str) -> None:
    text, lines = redacted(f" before\n{line}\n after\n")
    assert "planted" not in text and lines == 1
    assert text.startswith(" before\n") and text.endswith("\n after\n")


@pytest.mark.parametrize(
    "token", [AWS, GITHUB, "hf_" + "x" * 34, "xoxb-12345678901", "eyJ" + "a" * 20 + ".b" * 12]
)
def test_a_token_is_known_by_its_form(token: str) -> None:
    text, lines = redacted(f"+call('{token}')\n")
    assert (token in text) is (token.count(".") > 2) and lines == (0 if token.count(".") > 2 else 1)


def test_a_private_key_goes_whole_or_not() -> None:
    begin, end = "-----BEGIN RSA PRIVATE" + " KEY-----", "-----END RSA PRIVATE" + " KEY-----"
    text, _ = redacted(f"+{begin}\n+MIIplanted\n+planted\n+{end}\n+more\n")
    assert "planted" not in text and text.endswith(f"{end}\n+more\n")
    assert "planted" not in redacted(f"+{begin}\n+planted")[0], "cut off"


def test_the_values_of_this_process_s_secrets_are_found_anywhere() -> None:
    variables = {
        "DB_PASSWORD": "correct horse",
        "TOKEN": "abc",
        "TOKEN_PATH": "/etc/token",
        "USER": "somebody",
    }
    text, lines = redacted("+# correct horse, abc, /etc/token, somebody\n", variables=variables)
    assert text == f"+# {REPLACEMENT}, abc, /etc/token, somebody\n" and lines == 1


@pytest.mark.parametrize(
    "line",
    [
        "+token = self._next_token()",
        "+    while token:",
        "+page_token: str | None = None",
        "+def f(secret: str) -> None:",
        "+AUTH_TOKEN_PATH = 'auth/token'",
        "+password = getpass.getpass()",
    ],
)
def test_code_that_only_speaks_of_secrets_stays(line: str) -> None:
    assert redacted(f"{line}\n", code=True) == (f"{line}\n", 0)


@pytest.mark.parametrize(
    "line", ["  max_tokens: 1024", "  token: null", "  private: true", "  path: data/digits"]
)
def test_numbers_and_switches_of_a_job_stay(line: str) -> None:
    assert redacted(f"{line}\n") == (f"{line}\n", 0)


def test_names() -> None:
    assert all(
        map(is_secret_name, ("MLFLOW_TRACKING_PASSWORD", "aws_secret_access_key", "HF_TOKEN", "ApiKey"))
    )
    assert not any(map(is_secret_name, ("RAY_AUTH_TOKEN_PATH", "HOME", "PRIVATE_KEY_FILE", "KEYBOARD")))


@pytest.mark.parametrize(
    "piece", ["a", "token", "token='", "http://", "eyJaaaaaaaaaaaa.", "a@b", "-----BEGIN PRIVATE KEY-----"]
)
def test_no_text_takes_long(piece: str) -> None:
    began = time.process_time()
    redacted(piece * ((1 << 18) // len(piece)))
    redacted((piece * (8000 // len(piece)) + "\n") * 4)
    assert time.process_time() - began < 5


def test_a_long_line_with_urls_is_left_out() -> None:
    line = "+" + "x" * 9000 + " http://u:planted@h/"
    assert redacted(f"a\n{line}\nb\n") == (f"a\n+{REPLACEMENT}\nb\n", 1)
