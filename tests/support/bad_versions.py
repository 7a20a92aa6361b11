"""The catalogue of bad versions: what is wrong with each, how it is deployed, and what should find it.

Owns the list. The faults themselves are in `tests.support.faulty`; `proofs.versions` deploys them all.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Strategy = Literal["blue-green", "canary"]
TRIAL, INSTALLATION, METRICS = "trial", "installation", "metrics"
# The kinds of findings of a gate; errors are 5xx and requests without a whole response.
PROBES, ERRORS, REFUSALS, LATENCY = "probes", "errors", "client errors", "slow"
SATURATION, SESSIONS, MEMORY, RESTARTS, ALERTS = "saturation", "sessions", "memory", "restarts", "alerts"
GATES = (
    TRIAL,
    INSTALLATION,
    METRICS,
    PROBES,
    ERRORS,
    REFUSALS,
    LATENCY,
    SATURATION,
    SESSIONS,
    MEMORY,
    RESTARTS,
    ALERTS,
)


@dataclass(frozen=True, kw_only=True)
class BadVersion:
    """One bad version.

    Attributes:
        fault: its name in `tests.support.faulty`.
        wrong: what it does, in the words of a report.
        found_by: what should find it; one of several where each is right.
        strategy: of its deployment.
        loaded: whether users send requests meanwhile; what the trial finds needs none.
        late_s: a response later than this has hurt the user.
        named: whether the issue names it.
    """

    fault: str
    wrong: str
    found_by: tuple[str, ...]
    strategy: Strategy = "canary"
    loaded: bool = True
    late_s: float = 2.0
    named: bool = False

    @classmethod
    def of_trial(cls, fault: str, wrong: str, *, named: bool = False) -> BadVersion:
        """Return a version that must get no traffic at all."""
        found_by = (TRIAL, METRICS) if fault.startswith("without-") else (TRIAL,)
        return cls(fault=fault, wrong=wrong, found_by=found_by, loaded=False, strategy="blue-green", named=named)


CAUGHT_BEFORE_TRAFFIC = tuple(
    BadVersion.of_trial(fault, wrong, named=named)
    for fault, wrong, named in (
        ("missing-traces", "404 for every stored trace", True),
        ("half-refused", "401 for half of the valid requests", True),
        ("empty-lists", "200 with an empty list", True),
        ("never-stored", "201, and never stored", True),
        ("in-memory", "a dictionary without a database, any key accepted", True),
        ("without-latency", "no latency metric", True),
        ("without-saturation", "no saturation metric", True),
        ("logging-secrets", "key and prompts in its log", True),
        ("ignoring-the-end", "ignores SIGTERM", True),
        ("crashing-together", "crashes under concurrent requests", True),
        ("any-key", "any key accepted", False),
        ("writing-with-any-scope", "a key that may only read may write", False),
        ("wrong-costs", "costs are twice what was stored", False),
        ("wrong-stored-costs", "stores ten times the cost", False),
        ("truncated-pages", "half of each page, as the last one", False),
        ("duplicating", "stores each span twice", False),
        ("other-trace", "another trace than was asked for", False),
        ("short-texts", "stores texts without their end", False),
        ("large-batches", "stores the first 100 items of a larger write", False),
        ("stale-reads", "keeps each trace as it was first read", False),
        ("first-values", "a span that is sent again keeps its first values", False),
        ("repeated-rows", "returns each span twice", False),
        ("rounded-costs", "costs with six digits", False),
        ("plain-text", "JSON as text/plain", False),
        ("leaking-descriptors", "a file stays open for every fourth request", False),
        ("other-version", "names another version", False),
        ("redirected", "307 for every write", False),
        ("broken", "500 on one route", False),
        ("locking-traces", "locks the table of traces for ever", False),
        ("exiting", "ends at its start", False),
        ("unready", "never ready", False),
    )
)
CAUGHT_UNDER_TRAFFIC = (
    BadVersion(
        fault="forgetful-reads",
        wrong="404 for traces that another process wrote",
        found_by=(REFUSALS, PROBES),
        named=True,
    ),
    BadVersion(
        fault="half-refused-late", wrong="401 for half of the valid requests, later", found_by=(REFUSALS, PROBES)
    ),
    BadVersion(fault="rate-limited", wrong="429 for a tenth of the valid requests", found_by=(REFUSALS,)),
    BadVersion(fault="rejecting-kind", wrong="400 for a valid kind of span", found_by=(REFUSALS, TRIAL)),
    BadVersion(fault="redirected-late", wrong="307 for every write, later", found_by=(REFUSALS, ERRORS, PROBES)),
    BadVersion(fault="failing", wrong="500 for every twentieth write", found_by=(ERRORS, TRIAL)),
    BadVersion(fault="failing-reads", wrong="500 for 2 % of one route", found_by=(ERRORS,), strategy="blue-green"),
    BadVersion(fault="unavailable", wrong="503 for 8 % of the writes", found_by=(ERRORS,)),
    BadVersion(fault="alternating", wrong="bad, bad, good for ever", found_by=(ERRORS,), named=True),
    BadVersion(fault="alternating-unknown", wrong="bad, bad, unknown for ever", found_by=(ERRORS,), named=True),
    BadVersion(fault="unanswered", wrong="a tenth of the reads never answered", found_by=(ERRORS,), named=True),
    BadVersion(fault="cut-off", wrong="a tenth of the reads cut off in the body", found_by=(ERRORS,)),
    BadVersion(fault="slow-share", wrong="4.5 % of the requests 5 s slower", found_by=(LATENCY,), named=True),
    BadVersion(
        fault="slow-reads",
        wrong="reads from 8 to 408 ms",
        found_by=(LATENCY,),
        strategy="blue-green",
        late_s=0.3,
        named=True,
    ),
    # A probe waits 1 s for a response.
    BadVersion(fault="slow", wrong="everything 1.5 s slower", found_by=(PROBES, LATENCY), late_s=1.0),
    BadVersion(fault="slow-writes", wrong="writes 400 ms slower", found_by=(LATENCY,), late_s=0.3),
    BadVersion(fault="slow-later", wrong="400 ms slower after half a minute", found_by=(LATENCY,), late_s=0.3),
    BadVersion(fault="blocking", wrong="stops for 0.6 s at every fortieth request", found_by=(LATENCY,), late_s=0.3),
    BadVersion(
        fault="leaking-memory",
        wrong="64 KiB more memory for each request",
        found_by=(MEMORY, TRIAL),
        strategy="blue-green",
        named=True,
    ),
    BadVersion(fault="leaking", wrong="takes the pool's connections for itself", found_by=(SATURATION, TRIAL)),
    BadVersion(fault="crashing-after-requests", wrong="ends after 200 requests", found_by=(RESTARTS, ERRORS)),
    BadVersion(fault="never-stored-late", wrong="201, and not stored, later", found_by=(PROBES,)),
    BadVersion(fault="empty-reads-late", wrong="200 without spans for every read, later", found_by=(PROBES,)),
    BadVersion(fault="html-late", wrong="200 with an HTML page for every read", found_by=(PROBES,)),
    BadVersion(fault="any-key-late", wrong="any key accepted, later", found_by=(PROBES,)),
    BadVersion(fault="other-trace-late", wrong="another trace than was asked for, later", found_by=(PROBES,)),
    BadVersion(fault="stale-reads-late", wrong="keeps each trace as it was first read, later", found_by=(PROBES,)),
    BadVersion(
        fault="own-stale-reads-late", wrong="does not see what the other fleet adds to a trace", found_by=(PROBES,)
    ),
    BadVersion(
        fault="losing-requests-late", wrong="2 % of the writes not stored", found_by=(PROBES,), strategy="blue-green"
    ),
    BadVersion(fault="omitting-late", wrong="2 % of the reads lack a span", found_by=(PROBES,), strategy="blue-green"),
    BadVersion(
        fault="lying-metrics-late", wrong="500 for 5 % of the writes, in no metric of its own", found_by=(ERRORS,)
    ),
    BadVersion(fault="losing-late", wrong="3 % of the rows not stored", found_by=(PROBES,), strategy="blue-green"),
    # The last one: what it does to the old fleet is in the measurements that the next deployment compares with.
    BadVersion(
        fault="holding-connections",
        wrong="holds 100 sessions outside of its pool",
        found_by=(SESSIONS, ERRORS, SATURATION, PROBES),
    ),
)
BAD_VERSIONS = (*CAUGHT_BEFORE_TRAFFIC, *CAUGHT_UNDER_TRAFFIC)
