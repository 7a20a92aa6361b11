"""Results of single cases, so that a proof of hours can be interrupted and continued.

Each finished case is a line of .observatory/proofs/NAME.jsonl, with the commit that it was tried on. `--resume` takes
them over; without it, a proof begins anew.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from proofs.record import commit

DIRECTORY = Path(__file__).resolve().parent.parent / ".observatory/proofs"


@dataclass(kw_only=True)
class Kept:
    """The finished cases of one proof.

    Attributes:
        file: their lines.
        resume: whether the cases of an earlier run count.
        commits: on which the cases were tried.
    """

    file: Path
    resume: bool = False
    commits: list[str] = field(default_factory=list)
    _results: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Read the lines of an earlier run, or remove them."""
        self.file.parent.mkdir(parents=True, exist_ok=True)
        if not self.resume:
            self.file.unlink(missing_ok=True)
        for line in self.file.read_text(encoding="utf-8").splitlines() if self.file.exists() else ():
            case = json.loads(line)
            self._note(case["case"], case["commit"], case["result"])

    def find(self, case: str) -> Any:
        """Return the result of a finished case; None where it is to be tried."""
        return self._results.get(case)

    def add(self, case: str, result: Any) -> None:
        """Keep the result of a case, as JSON has it."""
        tried = commit()
        with self.file.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps({"case": case, "commit": tried, "result": result}) + "\n")
        self._note(case, tried, result)

    def _note(self, case: str, tried: str, result: Any) -> None:
        self._results[case] = result
        if tried not in self.commits:
            self.commits.append(tried)


def kept_of(name: str, *, resume: bool) -> Kept:
    """Return the finished cases of the proof with this name."""
    return Kept(file=DIRECTORY / f"{name}.jsonl", resume=resume)
