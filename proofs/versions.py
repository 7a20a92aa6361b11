"""Bad versions: each is deployed under load, and must be found by the gate that should find it."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass
from typing import Any

from proofs.judged import Judged, Judgement, on_stacks
from proofs.kept import Kept
from proofs.record import Outcome
from proofs.table import write_table
from proofs.users import Habits
from tests.support.bad_versions import BAD_VERSIONS, INSTALLATION, TRIAL, BadVersion
from tests.support.faulty.launch import FAULTS

PROMISE = (
    "Each bad version is refused or rolled back by a gate that should find it, and users are hurt at most by the "
    "canary's share of the traffic."
)
BAKE_S = 90  # longer than any gate takes
COLUMNS = (
    "version", "found by", "traffic", "from the first bad response until the old fleet had all", "hurt", "share hurt",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Found:
    """One bad version and its end."""

    version: BadVersion
    judgement: Judgement

    @property
    def caught(self) -> bool:
        """Whether the version was refused or rolled back."""
        return self.judgement.status in {"refused", "rolled-back"}

    @property
    def expected(self) -> set[str]:
        """What should find it: a fault that begins late, also what precedes the traffic, if that takes until then."""
        return {*self.version.found_by, *((TRIAL, INSTALLATION) if FAULTS[self.version.fault].late else ())}

    @property
    def gate(self) -> str:
        """What found it."""
        return ", ".join(self.judgement.gates) or "no gate"

    @property
    def problem(self) -> str:
        """Why the promise does not hold; empty if it does."""
        if not self.caught:
            return self.judgement.status
        if not self.expected.intersection(self.judgement.gates):
            return f"found by {self.gate}, not by {' or '.join(self.version.found_by)}"
        if self.judgement.share > self.judgement.shifted:
            return f"{self.judgement.share:.1%} of the requests hurt, the version had {self.judgement.shifted:.0%}"
        return ""

    def described(self) -> dict[str, Any]:
        """Return the measurements for the record."""
        found = self.judgement
        return {
            "gate": self.gate,
            "status": found.status,
            "said": found.said,
            "seconds until all traffic was back": found.back_s and round(found.back_s, 1),
            "requests hurt": found.hurt,
            "of requests": found.requests,
            "share of the traffic": found.shifted,
            "examples": list(found.examples),
            "problem": self.problem,
        }

    def row(self) -> tuple[str, ...]:
        """Return the row of the table."""
        found = self.judgement
        name = f"**{self.version.wrong}**" if self.version.named else self.version.wrong
        gate = self.gate if self.caught else found.status
        if found.status == "refused" or not found.shifted:
            return name, gate, "none", "", "0", ""
        back = f"{found.back_s:.1f} s" if found.back_s is not None else found.status
        return name, gate, f"{found.shifted:.0%}", back, f"{found.hurt} of {found.requests}", f"{found.share:.1%}"


def prove(rounds: int, share: int, kept: Kept) -> Outcome:
    """Deploy each bad version `rounds` times; with `share`, one of so many."""
    outcome, begun, gates = Outcome(promise=PROMISE), time.monotonic(), Counter[str]()
    cases = [(f"{each.fault} {n}", each) for n in range(rounds) for each in BAD_VERSIONS[::share]]
    rows: dict[str, list[Found]] = {}
    for version, end in on_stacks(cases, deployed, outcome, kept):
        found = Found(version=version, judgement=end)
        rows.setdefault(version.fault, []).append(found)
        gates[found.gate if found.caught else end.status] += 1
        print(f"{version.fault}: {found.described()}", flush=True)
        if found.problem:
            outcome.failed += 1
            outcome.failures.append(f"{version.wrong}: {found.problem}: {end.said}")
        else:
            outcome.passed += 1
    outcome.counts = {
        "commits": kept.commits,
        "found by": dict(sorted(gates.items())),
        "versions": {fault: [each.described() for each in found] for fault, found in rows.items()},
    }
    outcome.seconds = time.monotonic() - begun
    if share == 1:
        different = dict.fromkeys(each.row() for found in rows.values() for each in found)  # rounds alike are one row
        write_table("bad versions", COLUMNS, [*different])
    return outcome


def deployed(stack: Judged, version: BadVersion) -> Judgement:
    """Deploy one bad version."""
    habits = Habits() if version.loaded else None
    return stack.deploy(version.fault, version.strategy, bake_s=BAKE_S, habits=habits, late_s=version.late_s)
