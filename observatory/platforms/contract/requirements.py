"""What a release is checked for, and what was found."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, field
from types import TracebackType
from typing import Literal

from observatory.delivery.environment import HostsError
from observatory.delivery.releases import ReleaseError
from observatory.progress import Reporter, silent, task
from observatory.runtime import RuntimeFault

PAGE = "docs/service-contract.md"

Outcome = Literal["passed", "failed", "missing", "not tested"]
"""`missing` is an optional part that the release does not have; `not tested` follows a failure before it, or what was
found does not decide it."""


class ContractError(HostsError):
    """A release does not do what the contract requires; the message says what it did."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """The result of one requirement.

    Attributes:
        section: of the contract's page, as the anchor of its heading.
        requirement: what the contract says, in a few words.
        outcome: of the check.
        detail: what was found.
    """

    section: str
    requirement: str
    outcome: Outcome
    detail: str = ""

    @property
    def place(self) -> str:
        """The section of the page."""
        return f"{PAGE}#{self.section}"


@dataclass(kw_only=True)
class Findings:
    """The results so far, in the order of the checks; `report` gets the progress."""

    report: Reporter = silent
    all: list[Finding] = field(default_factory=list)

    def add(self, section: str, requirement: str, outcome: Outcome, detail: str = "") -> None:
        """Record a result."""
        self.all.append(Finding(section=section, requirement=requirement, outcome=outcome, detail=detail))

    def requirement(self, section: str, requirement: str, *, optional: bool = False) -> Requirement:
        """Return a block that finds whether a release meets a requirement: it raises if not, and the check goes on."""
        return Requirement(findings=self, section=section, text=requirement, optional=optional)

    def met_last(self) -> bool:
        """Whether the last requirement was met."""
        return self.all[-1].outcome == "passed"

    @property
    def failed(self) -> bool:
        """Whether a requirement is not met."""
        return any(finding.outcome == "failed" for finding in self.all)


@dataclass(kw_only=True)
class Requirement:
    """A block that records the result of one requirement; what it sets as `unchecked` was not tested."""

    findings: Findings
    section: str
    text: str
    optional: bool
    unchecked: tuple[str, ...] = ()
    _task: ExitStack = field(default_factory=ExitStack, init=False, repr=False)

    def __enter__(self) -> Requirement:
        """Show that the requirement is checked."""
        self._task.enter_context(task(self.findings.report, f"{self.section}: {self.text}"))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        """Record the result; an error that says nothing about the release is raised."""
        self._task.__exit__(kind, error, trace)
        if error is None:
            outcome: Outcome = "not tested" if self.unchecked else "passed"
            self.findings.add(self.section, self.text, outcome, "; ".join(self.unchecked))
            return True
        detail = _detail(error)
        if detail is not None:
            self.findings.add(self.section, self.text, "missing" if self.optional else "failed", detail)
        return detail is not None


def _detail(error: BaseException) -> str | None:
    """Return what an error says about a release; None if it says nothing."""
    import httpx  # noqa: PLC0415 - only while a release is checked

    if isinstance(error, HostsError | ReleaseError | RuntimeFault):
        return str(error)
    if isinstance(error, httpx.HTTPError | OSError):
        return f"the instance does not respond: {str(error) or type(error).__name__}"
    if isinstance(error, ValueError | KeyError | TypeError | AttributeError | IndexError):  # of a JSON document
        return f"a response has another form: {type(error).__name__}: {error}"
    return None
