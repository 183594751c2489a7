"""Job files made to harm: one message with file and line, soon, whatever stands in them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hostile import outcomes

from convmlp_platform.cli.main import main
from convmlp_platform.config.explain import yaml_text
from convmlp_platform.config.load import load_job
from convmlp_platform.errors import ConfigError

TRAIN = """\
kind: train
name: x
model: {name: convmlp_s}
data: {path: d}
optimizer: {lr: 1e-5}
training: {epochs: 5, global_batch_size: 64, micro_batch_size: 32}
"""
LAUGHS = "a0: &a0 [x, x]\n" + "".join(f"a{i + 1}: &a{i + 1} [*a{i}, *a{i}]\n" for i in range(60))
MERGES = "a0: &a0 {x: 1}\n" + "".join(f"a{i + 1}: &a{i + 1} {{<<: [*a{i}, *a{i}]}}\n" for i in range(60))
LINES = {
    "1: x": "key '1' is no text",
    "null: x": "key 'null' is no text",
    "~: x": "key '~' is no text",
    "on: x": "key 'on' is no text",
    "1e5: x": "key '1e5' is no text",
    ".nan: x": "key '.nan' is no text",
    "[a]: x": "a key that is a list or a mapping",
    "{a: b}: x": "a key that is a list or a mapping",
    "<<: {1: 2}": "key '1' is no text",
    "<<: 5": "expected a mapping or list of mappings",
    "seed: &a [*a]": "a value that refers to itself",
    "seed: &a {b: *a}": "a value that refers to itself",
    "seed: &a {<<: *a}": "a value that refers to itself",
    "seed: *a": "found undefined alias",
    "seed: 1e999": "1e999 is too large for a number",
    "seed: -1e999": "-1e999 is too large for a number",
    f"seed: {'9' * 5000}": "a number of 5,000 characters",
    f"seed: {'9' * 30}": f"{'9' * 30} is too large for a whole number",
    "seed: 0xffffffffffffffff": "0xffffffffffffffff is too large for a whole number",
    "seed: -9223372036854775809": "-9223372036854775809 is too large for a whole number",
    "seed: !!int x": "'x' is not a int",
    "seed: !!int ''": "'' is not a int",
    "seed: !!float x": "'x' is not a float",
    "seed: !!bool maybe": "'maybe' is not a bool",
    "seed: !!int [1]": "expected a scalar node",
    "seed: !!binary aGk=": "could not determine a constructor",
    "seed: !!timestamp 2026-11-21": "could not determine a constructor",
    "seed: !!set {a}": "could not determine a constructor",
    'name: "\\0"': "a text that holds a NUL character",
    'name: "\\ud800"': "a text that holds a NUL character or half of a pair",
    f"name: {'a' * 5000}": "a text of 5,000 characters",
    f"seed: {'[' * 40 + ']' * 40}": "values nested deeper than 32",
    "name: \x07": "the character U+0007 has no place in a text",
}


@pytest.mark.parametrize("line", LINES, ids=lambda line: line[:24])
def test_the_line_is_named(tmp_path: Path, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    key = line.partition(":")[0]
    path = tmp_path / "x.yaml"
    path.write_text("".join(f"{old}\n" for old in TRAIN.splitlines() if not old.startswith(f"{key}:")) + line)
    number = len(path.read_text().splitlines())
    assert main(["show", str(path)]) == 2
    told = capsys.readouterr().err
    assert f"{path}:{number}: " in told and LINES[line] in told
    assert len(told.splitlines()) == 1 and len(told) < 400 + len(str(path))


@pytest.mark.slow
def test_no_file_costs_much(tmp_path: Path) -> None:
    contents = {
        "laughs": LAUGHS,
        "merges": MERGES,
        "references": "a: &a x\nb: [" + "*a, " * 60_000 + "]\n",
        "brackets": "a: " + "[" * 200_000,
        "braces": "a: " + "{a: " * 100_000,
        "dashes": "- " * 200_000,
        "indentation": "".join(" " * i + "a:\n" for i in range(900)),
        "6 MB of text": "".join(f"k{i}: b\n" for i in range(600_000)),
        "10 MB in a line": "a" * 10_000_000,
        "many values": "a: [" + "1, " * 100_000 + "]",
        "unknown keys": TRAIN + "".join(f"k{i}: 1\n" for i in range(5_000)),
        "long unknown keys": TRAIN + "".join(f"? {'k' * 4000}{i}\n: 1\n" for i in range(120)),
        "a large kind": f"kind: {'k' * 4000}\n",
        "a grid": "kind: sweep\nname: s\njob: {}\nspace:\n"
        + "".join(f"  k{i}: [1, 2, 3]\n" for i in range(60)),
        "many samples": "kind: sweep\nname: s\njob: {}\nsamples: 4000000000\nspace: {a: {uniform: [0, 1]}}\n",
    }
    files = {label: tmp_path / f"{number}.yaml" for number, label in enumerate(contents)}
    for label, content in contents.items():
        files[label].write_text(content)
    files["zeros without end"] = Path("/dev/zero")
    found = outcomes(
        files,
        "from convmlp_platform.config.load import load_job\nfrom convmlp_platform.errors import ConfigError",
        "load_job(path)",
        "ConfigError",
        memory=1 << 30,
        seconds=40,
    )
    assert list(found) == list(files)
    assert {label for label, message in found.items() if not message.startswith(str(files[label]))} == set()
    assert max(map(len, found.values())) < 30_000
    assert (
        "values, references included" in found["laughs"] and "values, references included" in found["merges"]
    )
    assert "and 4,900 more problems" in found["unknown keys"]
    assert "trials; a sweep has 10,000 at most" in found["a grid"]
    assert "4,000,000,000 trials" in found["many samples"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed=1e999", "--set seed=1e999: 1e999 is too large"),
        (f"seed={'9' * 6000}", "a number of 6,000 characters"),
        ("seed=&a [*a]", "refers to itself"),
        ("tracking.tags={1: x}", "key '1' is no text"),
        (f"name={'a' * 600_000}", "--set name: too large"),
        (f"seed={'[' * 10_000}", "nested deeper than 32"),
        (f"a={LAUGHS}", "values, references included"),
        ("a." * 5_000 + "b=1", "has 5,001 parts"),
        ("optimizer.betas.²=1", "optimizer.betas is a list of 2: give a number from 0 to 1"),
        (f"optimizer.betas.{'9' * 5_000}=1", "optimizer.betas is a list of 2: give a number from 0 to 1"),
        ("name=\udcff", "the character U+DCFF has no place in a text"),
        ("name=\0", "the character U+0000 has no place in a text"),
        ("x" * 5_000, "expected KEY=VALUE"),
    ],
)
def test_options_have_the_same_limits(tmp_path: Path, override: str, message: str) -> None:
    (tmp_path / "x.yaml").write_text(TRAIN.replace("lr: 1e-5", "lr: 1e-5, betas: [0.9, 0.99]"))
    with pytest.raises(ConfigError) as raised:
        load_job(tmp_path / "x.yaml", [override])
    assert message in str(raised.value)
    assert len(str(raised.value)) < 600


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (
            "a: &a {x: 1}\nb: {<<: *a, y: 2}\nc: [*a, *a]",
            {"a": {"x": 1}, "b": {"x": 1, "y": 2}, "c": [{"x": 1}] * 2},
        ),
        ("a: 9223372036854775807", {"a": 2**63 - 1}),
        ("a: 1e308", {"a": 1e308}),
        ("a: .inf", {"a": float("inf")}),
        ("'1': x", {"1": "x"}),
        ("a: !!str 1", {"a": "1"}),
        ("a: !!int '7'", {"a": 7}),
        ("keys: [" + "a1234, " * 20_000 + "]", {"keys": ["a1234"] * 20_000}),
    ],
)
def test_what_people_write_is_read(text: str, value: Any) -> None:
    assert yaml_text.parse(text, "x.yaml") == value
