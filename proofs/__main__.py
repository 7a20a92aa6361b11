"""`python -m proofs [NAME...] [--rounds N] [--share K] [--resume]`: prove, and write docs/proofs.json."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

from proofs import (
    alerts,
    crash,
    delivery,
    flashback,
    flipped_bytes,
    killed_restores,
    migrations,
    mutants,
    neighbours,
    quiet,
    recovery,
    sequences,
    situations,
    versions,
    ways_out,
    workflow,
)
from proofs.kept import Kept, kept_of
from proofs.record import Outcome, record

# A proof takes how many rounds to make, and that one of so many cases is enough for each; another proof is a line here.
PROOFS: dict[str, Callable[[int, int], Outcome]] = {
    "crash": crash.prove,
    "migrations": migrations.prove_kills,
    "deployers": migrations.prove_at_once,
    "delivery": delivery.prove_faults,
    "delivery-kill": delivery.prove_kills,
    "flashback": flashback.prove,
    "flipped-bytes": flipped_bytes.prove,
    "mutants": mutants.prove,
    "neighbours": neighbours.prove,
    "quiet": quiet.prove,
    "recovery": recovery.prove,
    "workflow-kill": workflow.prove_kills,
}
# These take hours, so that each finished case is kept.
RESUMABLE: dict[str, Callable[[int, int, Kept], Outcome]] = {
    "alerts": alerts.prove,
    "killed-restores": killed_restores.prove,
    "sequences": sequences.prove,
    "versions": versions.prove,
    "ways-out": ways_out.prove,
    "situations": situations.prove,
}
NAMES = (*PROOFS, *RESUMABLE)


def main(arguments: list[str] | None = None) -> int:
    """Run the chosen proofs, or all; return 1 if a promise was broken."""
    parser = argparse.ArgumentParser(prog="python -m proofs", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)}; by default all")
    parser.add_argument("--rounds", type=int, default=1, help="how often each is repeated, with other draws")
    parser.add_argument("--share", type=int, default=1, help="try one of so many cases only")
    parser.add_argument("--resume", action="store_true", help="count the cases that an interrupted run has finished")
    chosen = parser.parse_args(arguments)
    if unknown := sorted(set(chosen.names) - set(NAMES)):
        parser.error(f"no proof {unknown[0]!r}; there are {', '.join(NAMES)}")
    failed = 0
    for name in chosen.names or NAMES:
        if name in RESUMABLE:
            outcome = RESUMABLE[name](chosen.rounds, chosen.share, kept_of(name, resume=chosen.resume))
        else:
            outcome = PROOFS[name](chosen.rounds, chosen.share)
        record(name, chosen.rounds, outcome)
        failed += outcome.failed
        print(f"{name}: {outcome.passed} passed, {outcome.failed} failed in {outcome.seconds:.0f} s")
        for failure in outcome.failures:
            print(failure, file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
