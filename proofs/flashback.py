"""Random rows are deleted from a stack under load, and restored from an earlier time: all of them, and nothing else."""

from __future__ import annotations

import random
import statistics
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo

from observatory.workspace import Workspace
from proofs.record import Outcome
from proofs.users import LATE_S, TIMEOUT_S, Habits, Users
from tests.support.checkout import SOURCE, Checkout

PROMISE = (
    "Rows are deleted from a random table of a stack under load, while others are changed and added: "
    "`backup flashback --restore-missing` inserts exactly the deleted ones, so that the checksum is as before, keeps "
    "every later write, and no request of a user fails."
)
DELETES, CLONES = 100, 10  # in a round; each clone is of another time
MOST_ROWS = 200
RATE = 20.0  # requests a second

_TRACE = (
    "INSERT INTO llm_traces (ts, trace_id, span_id, span_name, provider, model, input_type, input_text, duration_ms, "
    "status_code, attributes, user_id) SELECT now() - make_interval(secs => n * 130), {mark} || n, 's', 'chat', "
    "'proof', 'm' || n % 7, 'text', repeat(md5(n::text), 20), n % 5000, 'OK', jsonb_build_object('n', n), "
    "'proof-' || n % 50 "
)
_LOG = (
    "INSERT INTO llm_logs (ts, log_level, message, provider) "
    "SELECT now() - make_interval(secs => n / 2 * 60), 'INFO', {mark} || n / 2, 'proof' "
)
_METRIC = (
    "INSERT INTO llm_metrics (ts, metric_name, metric_type, provider, model, value) "
    "SELECT now() - make_interval(secs => n / 3 * 60), {mark}, 'gauge', 'proof', 'm', n / 3 "
)
_PRICE = (
    "INSERT INTO model_pricing (effective_date, provider, model, prompt_cost_per_1k, completion_cost_per_1k) "
    "SELECT '2026-01-01', 'proof', {mark} || n, 1, 2 "
)


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A table, how its rows are made and changed, and how many there are first; `key`: it has one."""

    table: str
    insert: str
    change: str
    number: int
    key: bool = True


KINDS = (
    Kind(table="llm_traces", insert=_TRACE, change="duration_ms = duration_ms + 2", number=12_000),
    Kind(table="llm_logs", insert=_LOG, change="message = message || '!'", number=9_000, key=False),
    Kind(table="llm_metrics", insert=_METRIC, change="value = value + 0.5", number=9_000, key=False),
    Kind(table="model_pricing", insert=_PRICE, change="prompt_cost_per_1k = 3", number=2_000),
)


def prove(rounds: int, share: int) -> Outcome:
    """Delete and restore one of `share` times `DELETES` in each round, on one stack."""
    outcome, begun = Outcome(promise=PROMISE), time.monotonic()
    with tempfile.TemporaryDirectory(prefix="observatory-flashback-") as directory:
        root = Path(directory) / "checkout"
        root.mkdir()
        checkout = Checkout.copy(root, rootfs=Workspace(root=SOURCE, stack="local").ensure_rootfs())
        try:
            checkout.run("up", "--engine", "embedded")
            url, key, ca_file = (checkout.output(name) for name in ("service_url", "api_key", "ca_file"))
            users = Users(url=url, api_key=key, ca_file=ca_file, habits=Habits(rate=RATE), late_s=TIMEOUT_S)
            with users:
                losses = Losses(checkout, outcome)
                for seed in range(rounds):
                    losses.run(random.Random(seed), DELETES // share)  # noqa: S311 - repeatable
            _judge(outcome, users, losses)
        finally:
            checkout.kill_all()
    outcome.seconds = time.monotonic() - begun
    return outcome


def _judge(outcome: Outcome, users: Users, losses: Losses) -> None:
    wrong = Counter(each.wrong for each in users.responses if each.wrong)
    outcome.failures += [f"{number} requests of users: {why}" for why, number in wrong.items()]
    outcome.failed += bool(wrong)
    outcome.counts |= {
        "deletes": dict(losses.tables),
        "deleted rows": losses.rows,
        "requests of users meanwhile": len(users.responses),
        "requests that failed": wrong.total(),
        f"requests that took more than {LATE_S:g} s": sum(each.seconds > LATE_S for each in users.responses),
        "seconds until a clone was readable, median": round(statistics.median(losses.opened), 1),
        "seconds to compare and restore, median": round(statistics.median(losses.restored), 1),
    }


@dataclass
class Losses:
    """Deletes on a stack, each followed by its restore."""

    checkout: Checkout
    outcome: Outcome
    tables: Counter[str] = field(default_factory=Counter)
    rows: int = 0
    opened: list[float] = field(default_factory=list)
    restored: list[float] = field(default_factory=list)
    _mark: int = 0

    def __post_init__(self) -> None:
        admin = self.checkout.json("outputs")["admin_database_url"]
        self._live = psycopg.connect(make_conninfo(admin, dbname="observatory"), autocommit=True)
        for kind in KINDS:
            self._insert(kind, kind.number)

    def run(self, draw: random.Random, deletes: int) -> None:
        """Delete and restore as often, from as many earlier times as there are clones in a round."""
        for first in range(0, deletes, DELETES // CLONES):
            at = str(self._one("SELECT clock_timestamp()"))
            contents = {kind.table: self._contents(kind) for kind in KINDS}
            begun = time.monotonic()
            clone = self.checkout.json("backup", "flashback", "--to-time", at)["clone"]["name"]
            self.opened.append(time.monotonic() - begun)
            for number in range(first, min(deletes, first + DELETES // CLONES)):
                broken = self._lose_and_restore(draw, at, contents)
                self.outcome.failures += [f"delete {number}: {each}" for each in broken]
                self.outcome.failed += bool(broken)
                self.outcome.passed += not broken
            self.checkout.run("backup", "flashback", "close", clone)

    def _lose_and_restore(self, draw: random.Random, at: str, contents: dict[str, Counter[str]]) -> list[str]:
        """Return what is not as promised."""
        kind = draw.choice(KINDS)
        lost = self._delete(draw, kind)
        self._change(draw, kind)
        self._insert(kind, draw.randint(1, 50))
        kept = self._contents(kind)
        begun = time.monotonic()
        where = ("--where", "provider = 'proof'") if draw.random() < 0.5 else ()  # noqa: PLR2004 - each other one
        found = self.checkout.json(
            "backup", "flashback", "--to-time", at, "--table", kind.table, *where, "--restore-missing"
        )["difference"]
        self.restored.append(time.monotonic() - begun)
        self.tables[kind.table] += 1
        self.rows += lost.total()
        now = self._contents(kind)
        broken = []
        if now != kept + lost:
            broken.append(
                f"{kind.table}: {(now - kept - lost).total()} rows too many, {(kept + lost - now).total()} lost"
            )
        if found["restored"]["inserted"] != lost.total():
            broken.append(f"{kind.table}: {lost.total()} rows were deleted, {found['restored']} of {found['missing']}")
        if lost - contents[kind.table]:
            broken.append(f"{kind.table}: the proof deleted later rows")
        return broken

    def _delete(self, draw: random.Random, kind: Kind) -> Counter[str]:
        """Delete random rows that nothing has changed or added since the first insert; return them."""
        query = sql.SQL(
            "WITH chosen AS (SELECT tableoid AS part, ctid AS place FROM {} WHERE provider = 'proof' AND {} "
            "ORDER BY hashtext(ctid::text || {}) LIMIT {}) "
            "DELETE FROM {} AS t USING chosen WHERE t.tableoid = part AND t.ctid = place RETURNING {}"
        )
        table = sql.Identifier(kind.table)
        untouched = sql.SQL(_UNTOUCHED[kind.table])
        row = sql.SQL("md5(t::text)")
        done = self._live.execute(
            query.format(
                table, untouched, sql.Literal(str(draw.random())), sql.Literal(draw.randint(1, MOST_ROWS)), table, row
            )
        )
        return Counter(digest for (digest,) in done.fetchall())

    def _change(self, draw: random.Random, kind: Kind) -> None:
        """Change random rows, also in tables without a key."""
        query = sql.SQL(
            "WITH chosen AS (SELECT tableoid AS part, ctid AS place FROM {} WHERE provider = 'proof' AND {} "
            "ORDER BY hashtext(ctid::text || {}) LIMIT {}) UPDATE {} AS t SET {} FROM chosen "
            "WHERE t.tableoid = part AND t.ctid = place"
        )
        table = sql.Identifier(kind.table)
        self._live.execute(
            query.format(
                table,
                sql.SQL(_CHANGEABLE[kind.table]),
                sql.Literal(str(draw.random())),
                sql.Literal(draw.randint(1, 50)),
                table,
                sql.SQL(kind.change),
            )
        )

    def _insert(self, kind: Kind, number: int) -> None:
        self._mark += 1
        mark = sql.Literal(f"proof {self._mark} ")
        rows = sql.SQL("{} FROM generate_series(1, {}) n").format(
            sql.SQL(kind.insert).format(mark=mark), sql.Literal(number)
        )
        self._live.execute(rows)

    def _contents(self, kind: Kind) -> Counter[str]:
        query = sql.SQL("SELECT md5(t::text) FROM {} AS t WHERE provider = 'proof'").format(sql.Identifier(kind.table))
        return Counter(digest for (digest,) in self._live.execute(query).fetchall())

    def _one(self, query: str) -> Any:
        return self._live.execute(query.encode()).fetchall()[0][0]


# Rows of the first insert, of which even numbers are deleted and odd ones are changed.
_UNTOUCHED = {
    "llm_traces": "trace_id LIKE 'proof 1 %' AND duration_ms % 2 = 0",
    "llm_logs": "message LIKE 'proof 2 %' AND message ~ '[02468]$'",
    "llm_metrics": "metric_name = 'proof 3 ' AND value::bigint % 2 = 0 AND value = trunc(value)",
    "model_pricing": "model LIKE 'proof 4 %' AND id % 2 = 0",
}
_CHANGEABLE = {
    "llm_traces": "trace_id LIKE 'proof 1 %' AND duration_ms % 2 = 1",
    "llm_logs": "message LIKE 'proof 2 %' AND message ~ '[13579]$'",
    "llm_metrics": "metric_name = 'proof 3 ' AND value::bigint % 2 = 1 AND value = trunc(value)",
    "model_pricing": "model LIKE 'proof 4 %' AND id % 2 = 1",
}
