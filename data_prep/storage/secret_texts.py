"""Texts that people wrote (code, diffs, job files), with the secrets in them replaced.

Nobody knows every secret. Replaced are: user info and queries of URLs (`urls.scrubbed`), values given to a name that
says secret, values of this process's variables of such names, tokens that begin as their service has them begin, and
private keys.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

from data_prep.storage.urls import scrubbed

REPLACEMENT = "***"

_SECRET_NAME = re.compile(r"PASSW|SECRET|TOKEN|CREDENTIAL|PRIVATE|(ACCESS|API|AUTH|ACCOUNT|ENCRYPTION)_?KEY")
# Names of this form whose values are a place, not a secret.
_PLACES = ("_PATH", "_FILE", "_DIR", "_URL", "_URI")
# From the word on that says secret: what comes before it in the name doesn't matter, and looking for it in a long line
# would take its length squared.
_NAME = (
    r"(?P<name>(?:passw|secret|token|credential|private|(?:access|api|auth|account|encryption)[_-]?key)"
    r"[\w.-]{0,64})"
)
_QUOTED = re.compile(
    _NAME + r"(?P<is>[\"']?\]?[ \t]{0,9}[:=][ \t]{0,9})(?P<quote>[\"'])(?P<value>[^\"'\n]{3,})(?P=quote)",
    re.IGNORECASE,
)
_PLAIN = re.compile(
    r"(?im)^(?P<before>[+\- ]?[ \t]{0,99}(?:-[ \t]+|#+[ \t]*|//[ \t]*)?(?:export[ \t]+|env[ \t]+|set[ \t]+)?"
    r"[\w.-]{0,64}?)" + _NAME + r"(?P<is>[ \t]{0,9}[:=][ \t]{0,9})(?P<value>[^\s\"'#][^\n#]{2,})$"
)
_TOKENS = re.compile(
    r"\b(?:(?:AKIA|ASIA)[0-9A-Z]{16}|gh[pousr]_\w{30,}|github_pat_\w{22,}|glpat-[\w-]{20,}|hf_[A-Za-z0-9]{30,}"
    r"|xox[abprs]-[\w-]{10,}|sk-[\w-]{20,}|AIza[\w-]{35}|dapi[0-9a-f]{32}|eyJ[\w-]{10,}\.[\w-]{10,}\.[\w-]{10,})"
)
_HEADER = re.compile(r"(?i)(authorization[\"']?\s*[:=]\s*[\"']?(?:bearer|basic|token)\s+)[^\s\"']+")
_PRIVATE_KEY = re.compile(
    r"(-----BEGIN [A-Z ]*PRIVATE KEY-----).*?(-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL
)
_LONGEST_LINE = 8192
"""Searching for URLs takes a line's length squared: 0.1 s."""
_NO_SECRET = re.compile(r"(?i)[\d.,_e+-]+\s*|true|false|null|none|~")
_SHORTEST_VALUE = 6
"""Of a variable: what is shorter would be found in many a word."""


def is_secret_name(name: str) -> bool:
    """Whether a variable or field of this name holds a secret rather than the place of one."""
    return bool(_SECRET_NAME.search(name.upper())) and not name.upper().endswith(_PLACES)


def redacted(text: str, *, code: bool = False, variables: Mapping[str, str] | None = None) -> tuple[str, int]:
    """The text with `***` in place of secrets, and how many lines that changed.

    Args:
        code: of a programming language, where only quoted values are secrets: `token = next_token()` is none.
        variables: whose values are replaced where their name says secret; default: this process's.
    """
    found, _ = without_values(text, variables)
    found = _PRIVATE_KEY.sub(rf"\1{REPLACEMENT}\2", found)
    found = _HEADER.sub(rf"\1{REPLACEMENT}", found)
    found = _TOKENS.sub(REPLACEMENT, found)
    found = _QUOTED.sub(_without_quoted, found)
    if not code:
        found = _PLAIN.sub(_without_plain, found)
    found = "\n".join(map(_without_logins, found.split("\n")))
    return found, _changed_lines(text, found)


def without_values(text: str, variables: Mapping[str, str] | None = None) -> tuple[str, int]:
    """As `redacted`, but only for the values of secret variables."""
    found = text
    for value in _values(os.environ if variables is None else variables):
        found = found.replace(value, REPLACEMENT)
    return found, _changed_lines(text, found)


def _without_logins(line: str) -> str:
    """A line without the user info and queries of its URLs; a long one that has URLs is left out."""
    if "://" not in line:
        return line
    return scrubbed(line) if len(line) <= _LONGEST_LINE else f"{line[:1]}{REPLACEMENT}"


def _values(variables: Mapping[str, str]) -> list[str]:
    """The longest first, or a part of one would be left."""
    values = {
        value for name, value in variables.items() if is_secret_name(name) and len(value) >= _SHORTEST_VALUE
    }
    return sorted(values, key=len, reverse=True)


def _without_quoted(match: re.Match[str]) -> str:
    if not is_secret_name(match["name"].replace("-", "_")):
        return match[0]
    return f"{match['name']}{match['is']}{match['quote']}{REPLACEMENT}{match['quote']}"


def _without_plain(match: re.Match[str]) -> str:
    if not is_secret_name(match["name"].replace("-", "_")) or _NO_SECRET.fullmatch(match["value"]):
        return match[0]
    return f"{match['before']}{match['name']}{match['is']}{REPLACEMENT}"


def _changed_lines(before: str, after: str) -> int:
    if before == after:
        return 0
    old, new = before.split("\n"), after.split("\n")
    differing = sum(one != other for one, other in zip(old, new, strict=False))
    return max(1, differing if len(old) == len(new) else differing + len(old) - len(new))
