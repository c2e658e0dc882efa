"""What removing each defence makes fail, as far as it can be known without a run."""

import re
from pathlib import Path

import pytest

from tests.defences import DEFENCES, ROOT, Defence

PAGE = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
ROW = re.compile(r"^\| (F\d+) \| (.+) \| (.+) \|$", re.MULTILINE)


@pytest.mark.parametrize("defence", DEFENCES, ids=lambda each: f"{each.fault} {each.what}")
def test_a_defence_stands_once_where_it_is_said_to(defence: Defence) -> None:
    code = (ROOT / "gateway" / defence.file).read_text(encoding="utf-8")
    assert code.count(defence.code) == 1
    path, _, name = defence.test.partition("::")
    tests = re.findall(r"def (test_\w+)", (ROOT / "tests" / path).read_text(encoding="utf-8"))
    assert any(name in test for test in tests)


def test_the_page_has_every_defence_and_no_other() -> None:
    said = {(fault, *pair) for fault, *pair in ROW.findall(PAGE)}
    assert said == {
        (each.fault, f"{each.what} (`{each.file}`)", f"`{Path(each.test.partition('::')[0]).name}`")
        for each in DEFENCES
    }
