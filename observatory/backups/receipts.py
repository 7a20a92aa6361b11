"""Receipts of restore drills: what was restored, how long it took, and what the checks found; signed.

Owns their files, their signatures, the metrics that they give, and whether one is good enough for a migration. A daemon
of the stack could write such a file, but not sign it: the key is outside of the stack's home.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from observatory.backups.pgbackrest import PgBackRest
from observatory.database.errors import DrillRequiredError
from observatory.nodes import Paths
from observatory.runtime import Sandbox
from observatory.security.signatures import RECEIPT, Signature, SignatureError, public_key, sign, signer

DIRECTORY = f"{Paths().data}/receipts"
METRICS_FILE = f"{Paths().textfiles}/restore-drill.prom"
KEPT = 200  # with one a week, those of four years
SYSTEM = "Database system identifier"  # of pg_controldata
REMEDY = "Run `observatory backup restore-test`, correct what it finds, and run again."

Result = Literal["passed", "failed"]


class DrillCheck(BaseModel):
    """One check of a drill: its name, its result, and what was found."""

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    name: str
    result: Literal["passed", "failed", "not run"]
    detail: str


class Receipt(BaseModel):
    """The result of a restore drill.

    Attributes:
        format: of this document.
        stack: whose backups were restored.
        system: identifier of its database system.
        started: when the drill began, in UTC.
        finished: when it ended, in UTC.
        target: `latest`, or a time in UTC.
        proves: the state at this time could be restored.
        repository: number of the repository; None if none had what was wanted.
        backup: label of the backup that the restore began with.
        lsn: the last WAL that was replayed.
        last_transaction: the time of the last transaction that was restored.
        values: name of the recorded values that were compared.
        rto_seconds: from the beginning of the restore until the database could be read at the target.
        rpo_seconds: age of the oldest transaction that was not archived when the drill began; 0: there was none.
        checks: every check.
        result: `passed` if every check passed.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    format: Literal[1] = 1
    stack: str
    system: str
    started: datetime
    finished: datetime
    target: str
    proves: datetime
    repository: int | None = None
    backup: str | None = None
    lsn: str | None = None
    last_transaction: datetime | None = None
    values: str | None = None
    rto_seconds: float | None = None
    rpo_seconds: float | None = None
    checks: tuple[DrillCheck, ...]
    result: Result

    @property
    def payload(self) -> bytes:
        """What the signature covers: the document as JSON with sorted keys and no spaces."""
        return json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":")).encode()


class SignedReceipt(BaseModel):
    """A receipt and its signature, as in its file."""

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    receipt: Receipt
    signature: Signature


@dataclass(frozen=True, kw_only=True)
class ReceiptStore:
    """The receipts of a stack.

    Attributes:
        sandbox: of the stack.
        key_file: the private key that signs them; there may be none yet.
    """

    sandbox: Sandbox
    key_file: Path

    def add(self, receipt: Receipt) -> Path:
        """Sign and keep a receipt, and the newest `KEPT` others; return its file.

        Raises:
            SignatureError: the key cannot be used.
        """
        signed = SignedReceipt(
            receipt=receipt, signature=sign(receipt.payload, self.key_file.read_text(), kind=RECEIPT)
        )
        inside = f"{DIRECTORY}/{receipt.finished.astimezone(UTC):%Y%m%dT%H%M%S.%fZ}.json"
        self.sandbox.write_file(inside, signed.model_dump_json(indent=2) + "\n")
        for file in self._files()[:-KEPT]:
            self.sandbox.remove_file(f"{DIRECTORY}/{file}")
        return self.sandbox.host_path(inside)

    def all(self) -> list[Receipt]:
        """Return the receipts that this key signed and that were not changed since, oldest first."""
        if not self.key_file.exists():
            return []
        trusted = {"key": public_key(self.key_file.read_text())}
        found = [receipt for file in self._files() if (receipt := self._read(file, trusted))]
        return sorted(found, key=lambda each: each.finished)

    def of_stack(self, stack: str, *, now: datetime | None = None) -> list[Receipt]:
        """Return those of a stack, oldest first; not those of a drill that ended while the clock was ahead."""
        now = now or datetime.now(UTC)
        return [each for each in self.all() if each.stack == stack and each.finished <= now]

    def _read(self, file: str, trusted: Mapping[str, str]) -> Receipt | None:
        try:
            with self.sandbox.open_read(f"{DIRECTORY}/{file}") as opened:
                signed = SignedReceipt.model_validate_json(opened.read())
            signer(signed.receipt.payload, signed.signature, trusted, kind=RECEIPT)
        except (FileNotFoundError, ValidationError, SignatureError):
            return None
        return signed.receipt

    def _files(self) -> list[str]:
        return sorted(file.name for file in self.sandbox.host_path(DIRECTORY).glob("*.json"))


def newest_by_repository(receipts: Iterable[Receipt]) -> dict[int | None, Receipt]:
    """Return the newest receipt of each repository."""
    return {each.repository: each for each in receipts}


@dataclass(frozen=True, kw_only=True)
class DrillRequirement:
    """A migration needs a passed receipt that proves a state of the last `days` days; 0: none is needed.

    Attributes:
        days: of the setting `backups.require_drill_days`.
        stack: name of the stack.
        key_file: the private key that signs the receipts.
    """

    days: int
    stack: str
    key_file: Path

    def check(self, sandbox: Sandbox, *, now: datetime | None = None) -> None:
        """Refuse a migration without such a receipt.

        The newest receipt of a repository counts: a failed one is not made up for by an earlier one.

        Raises:
            DrillRequiredError: there is none.
        """
        if not self.days:
            return
        now = now or datetime.now(UTC)
        receipts = ReceiptStore(sandbox=sandbox, key_file=self.key_file).of_stack(self.stack, now=now)
        mine = [each for each in receipts if each.system == system_identifier(sandbox)]
        newest = newest_by_repository(mine).values()
        if any(each.result == "passed" and now - each.proves <= timedelta(days=self.days) for each in newest):
            return
        raise DrillRequiredError(
            f"migrations need proof that the backups can be restored, not older than {self.days} days "
            f"(backups.require_drill_days), and {_lack(mine, now)}",
            remedy=REMEDY,
        )


def _lack(receipts: list[Receipt], now: datetime) -> str:
    """Return what is wrong with the newest receipts."""
    if not receipts:
        return "no restore drill of this database has ended"
    newest = receipts[-1]
    if newest.result == "failed":
        failed = next((f"{each.name}: {each.detail}" for each in newest.checks if each.result == "failed"), "")
        return f"the restore drill of {newest.finished:%Y-%m-%d %H:%M} UTC failed ({failed})"
    return f"the newest restore drill proves a state that is {(now - newest.proves).days} days old"


def system_identifier(sandbox: Sandbox) -> str:
    """Return the identifier of the stack's database system; empty where there is no database."""
    tool = PgBackRest(sandbox)
    return str(tool.node(tool.repositories[0]).control.get(SYSTEM) or "")


def publish_drills(store: ReceiptStore, *, stack: str, expected_since: datetime, now: datetime | None = None) -> None:
    """Write the metrics of the drills to a file that node_exporter reads.

    Args:
        store: has the receipts.
        stack: whose receipts count.
        expected_since: from which time on a drill is expected, where none has passed yet.
        now: None: the time of the clock.
    """
    found = metrics(store.of_stack(stack, now=now), expected_since=expected_since)
    store.sandbox.write_file(METRICS_FILE, found)


def metrics(receipts: list[Receipt], *, expected_since: datetime) -> str:
    """Return the results of drills in Prometheus' text format."""
    passed = [each for each in receipts if each.result == "passed"]
    failed = bool(receipts) and receipts[-1].result == "failed"
    since = max([each.proves for each in passed], default=expected_since)
    gauges: dict[str, tuple[str, Mapping[str, float]]] = {
        "observatory_restore_drill_proven_timestamp_seconds": (
            "The newest state that a drill has restored exactly; before the first, when drills began to be expected.",
            {"": since.timestamp()},
        ),
        "observatory_restore_drill_failed": ("Whether the last drill failed.", {"": int(failed)}),
        "observatory_restore_drill_last_timestamp_seconds": (
            "When the last drill ended; 0: none has.",
            {"": receipts[-1].finished.timestamp() if receipts else 0},
        ),
        "observatory_restore_drill_repository_proven_timestamp_seconds": (
            "The newest state that a drill has restored from a repository.",
            {_label(each): each.proves.timestamp() for each in passed},
        ),
        "observatory_restore_drill_rto_seconds": (
            "Duration of the last restore that could be read.",
            {_label(each): each.rto_seconds for each in passed if each.rto_seconds is not None},
        ),
        "observatory_restore_drill_rpo_seconds": (
            "Age of the oldest transaction that was not archived when the last drill began.",
            {_label(each): each.rpo_seconds for each in passed if each.rpo_seconds is not None},
        ),
    }
    lines = []
    for name, (what, values) in gauges.items():
        lines += [f"# HELP {name} {what}", f"# TYPE {name} gauge"]
        lines += [f"{name}{labels} {value:.3f}" for labels, value in values.items()]
    return "".join(f"{line}\n" for line in lines)


def _label(receipt: Receipt) -> str:
    return f'{{repository="{receipt.repository}"}}'
