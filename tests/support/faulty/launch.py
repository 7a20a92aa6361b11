"""Starts the service with one fault, by its name."""

from __future__ import annotations

import importlib
from typing import Any

from . import content, data, process, requests
from .exchange import Fault

FAULTS: dict[str, type[Fault]] = {
    "good": Fault,
    "slow-start": process.SlowStart,
    "one-error": process.OneError,
    "unready": requests.Unready,
    "broken": requests.Broken,
    "failing": requests.Failing,
    "failing-reads": requests.FailingReads,
    "unavailable": requests.Unavailable,
    "alternating": requests.Alternating,
    "alternating-unknown": requests.AlternatingUnknown,
    "half-refused": requests.HalfRefused,
    "half-refused-late": requests.HalfRefusedLate,
    "rate-limited": requests.RateLimited,
    "redirected": requests.Redirected,
    "redirected-late": requests.RedirectedLate,
    "unanswered": requests.Unanswered,
    "cut-off": requests.CutOff,
    "slow": requests.Slow,
    "slow-share": requests.SlowShare,
    "slow-reads": requests.SlowReads,
    "slow-writes": requests.SlowWrites,
    "slow-later": requests.SlowLater,
    "blocking": requests.Blocking,
    "crashing-together": requests.CrashingTogether,
    "crashing-after-requests": requests.CrashingAfterRequests,
    "missing-traces": data.MissingTraces,
    "forgetful-reads": data.ForgetfulReads,
    "empty-lists": data.EmptyLists,
    "empty-reads-late": data.EmptyReadsLate,
    "never-stored": data.NeverStored,
    "never-stored-late": data.NeverStoredLate,
    "in-memory": data.InMemory,
    "any-key": data.AnyKey,
    "any-key-late": data.AnyKeyLate,
    "wrong-costs": data.WrongCosts,
    "wrong-stored-costs": data.WrongStoredCosts,
    "truncated-pages": data.TruncatedPages,
    "duplicating": data.Duplicating,
    "losing-late": data.Losing,
    "other-trace": data.OtherTrace,
    "other-trace-late": data.OtherTraceLate,
    "html-late": data.HtmlLate,
    "rejecting-kind": data.RejectingKind,
    "short-texts": data.ShortTexts,
    "logging-secrets": data.LoggingSecrets,
    "large-batches": content.LargeBatches,
    "stale-reads": content.StaleReads,
    "stale-reads-late": content.StaleReadsLate,
    "own-stale-reads-late": content.OwnStaleReads,
    "first-values": content.FirstValues,
    "repeated-rows": content.RepeatedRows,
    "rounded-costs": content.RoundedCosts,
    "plain-text": content.PlainText,
    "leaking-descriptors": content.LeakingDescriptors,
    "losing-requests-late": content.LosingRequestsLate,
    "losing-once": content.LosingOnce,
    "omitting-late": content.OmittingLate,
    "omitting-once": content.OmittingOnce,
    "lying-metrics-late": content.LyingMetrics,
    "exiting": process.Exiting,
    "ignoring-the-end": process.IgnoringTheEnd,
    "leaking-memory": process.LeakingMemory,
    "leaking": process.LeakingConnections,
    "holding-connections": process.HoldingConnections,
    "locking-traces": process.LockingTraces,
    "without-latency": process.WithoutLatency,
    "without-saturation": process.WithoutSaturation,
    "other-version": process.OtherVersion,
    "writing-with-any-scope": process.WritingWithAnyScope,
}


def install(name: str) -> None:
    """Put the fault into the service that this process is about to start."""
    fault = FAULTS[name]
    fault.start()
    app: Any = importlib.import_module("storage_service.app")
    starlette = app.Starlette

    def faulty(*arguments: Any, **named: Any) -> Any:
        return _Wrapped(starlette(*arguments, **named), fault)

    app.Starlette = faulty


class _Wrapped:
    """The application with a fault around it; everything else is the application's own."""

    def __init__(self, app: Any, fault: type[Fault]) -> None:
        self._app, self._fault = app, fault(app)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._app, name)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await self._fault(scope, receive, send)
