from __future__ import annotations

from pathlib import Path

import pytest

from load.markdown import replace_block, table, write_block

TEXT = "before\n<!-- budget: python -m load.budget -->\nold\nlines\n<!-- /budget -->\nafter\n"


def test_a_table_has_its_numbers_to_the_right() -> None:
    made = table(["rule", "pages"], [["ours", "1"], ["theirs", "99"]])
    assert made == "| rule | pages |\n| :-- | --: |\n| ours | 1 |\n| theirs | 99 |"


def test_a_row_with_a_cell_too_few_is_refused() -> None:
    with pytest.raises(ValueError, match="as many cells"):
        table(["rule", "pages"], [["ours"]])


def test_only_what_stands_between_the_marks_is_replaced(tmp_path: Path) -> None:
    file = tmp_path / "README.md"
    file.write_text(TEXT)
    write_block(file, "budget", r"new \1 line")
    assert file.read_text() == TEXT.replace("old\nlines", r"new \1 line")


def test_an_empty_block_is_filled() -> None:
    assert replace_block("<!-- a: x -->\n<!-- /a -->", "a", "b") == "<!-- a: x -->\nb\n<!-- /a -->"


@pytest.mark.parametrize("text", ["", TEXT + TEXT], ids=["no block", "two blocks"])
def test_a_block_that_is_not_there_once_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="there must be one"):
        replace_block(text, "budget", "new")
