"""The tables that proofs write into a page."""

from __future__ import annotations

from pathlib import Path

import pytest

from proofs.table import sections_of, write_table

OTHER = "<!-- other -->\nkept\n<!-- end of other -->\n"
PAGE = f"# A page\n\n<!-- of one -->\nold\n<!-- end of of one -->\n\nBetween.\n\n{OTHER}"


def test_a_table_replaces_its_own_section_and_nothing_else(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(PAGE)
    write_table("of one", ("a", "b"), [("1", "2")], page=page)
    written = page.read_text()
    assert "| a | b |\n| --- | --- |\n| 1 | 2 |\n" in written
    assert "old" not in written
    assert sections_of(written)["other"] == OTHER
    assert written.startswith("# A page\n\n")
    assert "\n\nBetween.\n\n" in written


def test_a_table_without_a_place_is_refused(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(PAGE)
    with pytest.raises(ValueError, match="no place for the table 'third'"):
        write_table("third", ("a",), [], page=page)
