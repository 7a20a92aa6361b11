"""Tables of results in docs/benchmarks-delivery.md, each between the marks of its name."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from observatory.files.atomic import write_file
from proofs.record import commit, machine

PAGE = Path(__file__).resolve().parent.parent / "docs/benchmarks-delivery.md"
SECTION = re.compile(r"<!-- (?P<name>[a-z ]+) -->\n.*?<!-- end of (?P=name) -->\n", re.DOTALL)


def write_table(name: str, columns: Sequence[str], rows: Sequence[Sequence[str]], *, page: Path = PAGE) -> None:
    """Replace the table of a name; the rest of the page stays as it is."""
    lines = [f"| {' | '.join(each)} |" for each in (columns, ["---"] * len(columns), *rows)]
    told = f"Commit {commit()}; {machine()}."
    table = "\n".join((f"<!-- {name} -->", told, "", *lines, f"<!-- end of {name} -->", ""))
    text = page.read_text()
    found = {match["name"]: match.group() for match in SECTION.finditer(text)}
    if name not in found:
        raise ValueError(f"{page} has no place for the table {name!r}")
    write_file(page, text.replace(found[name], table), mode=0o644)


def sections_of(text: str) -> dict[str, str]:
    """Return the tables of a page by name, for a page that is written again."""
    return {match["name"]: match.group() for match in SECTION.finditer(text)}
