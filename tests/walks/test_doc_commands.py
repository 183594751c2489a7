"""README's and the documentation's commands: each is walked, or has a reason why not."""

from __future__ import annotations

import pytest
from doc_commands import NOT_WALKED, PAGES, blocks, commands, unfenced_commands
from walk import can_be_apart, shown, walk

WALKED = sorted({page for page in PAGES for block in blocks(page) if block.language == "sh"})


@pytest.mark.parametrize("page", PAGES)
def test_each_command_of_a_page_is_walked_or_has_a_reason(page: str) -> None:
    assert unfenced_commands(page) == []
    reasons, left_out = NOT_WALKED.get(page, {}), [one for one in blocks(page) if one.language == "console"]
    for block in left_out:
        assert any(block.first_line.startswith(begin) for begin in reasons), block.first_line
    for begin in reasons:
        assert any(block.first_line.startswith(begin) for block in left_out), f"{page} has no block {begin!r}"


def test_a_block_is_cut_into_commands() -> None:
    block = "one  # a word\n\n  # another\ntwo \\\n    --more\nthree |\n    four\nfive 'a\nb'\n"
    block += "python - <<'E'\nx = 1\nE\n"
    assert commands(block) == [
        "one  # a word", "two \\\n    --more", "three |\n    four", "five 'a\nb'", "python - <<'E'\nx = 1\nE"
    ]  # fmt: skip


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("page", WALKED)
def test_a_page_s_commands_work_in_a_fresh_clone(page: str) -> None:
    if not can_be_apart():
        pytest.skip(
            "unshare gives no network and processes of their own here: a walk would meet others' clusters"
        )
    steps = walk(page, brought=8)
    assert steps and all(step.code == 0 for step in steps), "\n".join(map(shown, steps))
