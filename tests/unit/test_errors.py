"""Refusal codes are stable and documented."""

import re
from pathlib import Path

import pytest
from nexus_common.errors import REFUSALS, Refusal

PROTOCOL = Path(__file__).resolve().parents[2] / "common" / "PROTOCOL.md"


def test_the_protocol_lists_every_code_with_its_meaning() -> None:
    table = PROTOCOL.read_text().partition("## Refusal codes")[2].partition("\n## ")[0]
    assert dict(re.findall(r"^\| `([a-z-]+)` \| (.+) \|$", table, re.MULTILINE)) == REFUSALS


def test_a_code_that_is_not_in_the_table_cannot_be_raised() -> None:
    with pytest.raises(ValueError, match="unknown refusal code"):
        Refusal("no-such-code")
