"""Rows of a table without a key that are deleted, and put back by a flashback: all of them, and each once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING

from observatory.database import connect
from proofs.flashback import KINDS

if TYPE_CHECKING:
    from proofs.killed_restores.victim import Victim

NUMBER, DELETED = 2000, 300
_CONTENT = "SELECT md5(t::text) FROM llm_logs AS t WHERE provider = 'proof'"
_DELETE = """
    DELETE FROM llm_logs WHERE provider = 'proof' AND md5(message || %s) IN (
        SELECT md5(message || %s) FROM llm_logs WHERE provider = 'proof' ORDER BY 1 LIMIT %s)
"""


class LostRows:
    """The rows; `wrong` compares them with those of before."""

    table = "llm_logs"

    def __init__(self, victim: Victim) -> None:
        self._conninfo, self._draw = victim.rows.conninfo, victim.draw
        [insert] = [kind.insert for kind in KINDS if kind.table == self.table]
        with connect(self._conninfo, purpose="proof") as connection:
            connection.execute("DELETE FROM llm_logs WHERE provider = 'proof'")
            rows = insert.format(mark="'row '")
            connection.execute(f"{rows} FROM generate_series(1, {NUMBER}) n".encode())
        self._before = self._content()
        self._after = Counter[str]()

    def delete(self) -> None:
        """Delete some."""
        salt = str(self._draw.random())
        with connect(self._conninfo, purpose="proof") as connection:
            connection.execute(_DELETE, [salt, salt, DELETED])
        self._after = self._content()

    def wrong(self, *, restored: bool | None) -> Iterator[str]:
        """Yield how the rows differ from those of before; None: they may also be as after the deletion."""
        found = self._content()
        if found == self._before or (restored is None and found == self._after):
            return
        yield (
            f"{(self._before - found).total()} deleted rows are missing and {(found - self._before).total()} are there "
            f"too often, of {(self._before - self._after).total()}"
        )

    def _content(self) -> Counter[str]:
        with connect(self._conninfo, purpose="proof") as connection:
            return Counter(digest for (digest,) in connection.execute(_CONTENT).fetchall())
