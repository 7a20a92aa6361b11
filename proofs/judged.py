"""A stack whose users send requests while a version is deployed, and what the deployment did to them."""

from __future__ import annotations

import contextlib
import json
import subprocess
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter

from observatory.documents.journal import Entry, entries
from observatory.documents.rollout import ENDED
from observatory.runtime import Sandbox
from observatory.workspace import Workspace
from proofs.kept import Kept
from proofs.record import Outcome
from proofs.users import LATE_S, Habits, Response, Users
from tests.support.bad_versions import INSTALLATION, METRICS, TRIAL
from tests.support.checkout import SOURCE, Checkout
from tests.support.releases import variant

EMBEDDED = ("--engine", "embedded")
OLD = "v0.1.0"
CANARY = 40  # percent: at 50 requests a second, 20 reach the new fleet
WARM_S = 6.0  # users before the command: the balancer's measurements need two scrapes
DECIDED_S, ABORTED_S = 600.0, 90.0  # a command that has not ended by then, tests included, is aborted, and then killed
POLL_S = 2.0
UNJUDGED = "not judged"


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """The end of one deployment.

    Attributes:
        status: of the deployment; "refused" where the version got no traffic, "not judged" where it got none because
            the old version was ill, too, "paused" or "undecided" where it was aborted because it had no end.
        said: the last line of the command.
        seconds: of the whole command.
        gates: what found the version, as `tests.support.bad_versions` names it.
        shifted: share of the traffic that the version had first, 0 to 1.
        first_bad_s: seconds from the shift to the first response that hurt; None if none did.
        back_s: seconds from the first response that hurt, or else the shift, until the old fleet had all traffic.
        hurt: requests of users since the shift that were not as they should be.
        requests: of users since the shift.
        examples: of the wrong responses.
    """

    status: str
    said: str
    seconds: float
    gates: tuple[str, ...] = ()
    shifted: float = 0.0
    first_bad_s: float | None = None
    back_s: float | None = None
    hurt: int = 0
    requests: int = 0
    examples: tuple[str, ...] = ()

    @property
    def share(self) -> float:
        """The share of the users' requests that hurt."""
        return self.hurt / self.requests if self.requests else 0.0


@dataclass(kw_only=True)
class Judged:
    """A stack with the old version, and a store to which versions are added when first deployed.

    Attributes:
        checkout: of the stack.
        versions: those in the store, by fault.
        touched: whether a deployment has changed the stack since it was last restored.
    """

    checkout: Checkout
    versions: dict[str, str] = field(default_factory=dict)
    touched: bool = False

    def version_of(self, fault: str) -> str:
        """Return the version with the fault; made and stored when it is first needed."""
        if fault not in self.versions:
            version = f"v0.1.{len(self.versions) + 1}"
            root = self.checkout.root
            first = root / f".observatory/releases/{OLD}.tar.gz"
            key = (root / ".observatory/signing-key.pem").read_text()
            made = variant(first, version, root / "made", key=key, fault=fault)
            self.checkout.run("release", "add", str(made))
            made.unlink()
            self.versions[fault] = version
        return self.versions[fault]

    def deploy(
        self,
        fault: str,
        strategy: str,
        *,
        bake_s: int,
        habits: Habits | None,
        late_s: float = LATE_S,
        meanwhile: Callable[[Judged, float], None] | None = None,
    ) -> Judgement:
        """Deploy the version with a fault under the users' load, if any, and return what that did to them."""
        version = self.version_of(fault)
        canary = ("--canary-percentage", str(CANARY)) if strategy == "canary" else ()
        arguments = ("--version", version, "--strategy", strategy, "--bake", str(bake_s), *canary, *EMBEDDED)
        users = self._users(habits, late_s)
        with users or contextlib.nullcontext():
            if users:
                time.sleep(WARM_S)
            begun, started = time.time(), time.monotonic()
            with self.checkout.start("deploy", "application", *arguments) as process:
                if meanwhile:
                    meanwhile(self, begun)
                said = self._ended(process)
            seconds = time.monotonic() - started
        return self._judged(process.returncode, said, seconds, begun, users.responses if users else [])

    def restore(self) -> None:
        """Return all traffic to the old version, whatever the last deployment did, and repair the stack."""
        if not self.touched:
            return
        document = self.document
        live = next(fleet for fleet in ("blue", "green") if document[fleet]["weight"])
        unfinished = document["deployment"] and document["deployment"]["status"] not in ENDED
        if unfinished or document[live]["version"] != OLD:
            self.checkout.run("rollback", "--method", "blue-green", "--yes", *EMBEDDED)
        self.checkout.run("up", *EMBEDDED)
        self.touched = False

    def since(self, begun: float) -> list[Entry]:
        """Return the journal's entries since a time."""
        noted = entries(self.checkout.root / ".observatory/rollout/local.journal.jsonl")
        return [entry for entry in noted if entry.at >= begun]

    def wait_for(self, event: str, begun: float, *, timeout_s: float = 120.0) -> bool:
        """Wait for an event of the journal; return whether it occurred before the deadline."""
        deadline = time.monotonic() + timeout_s
        while not any(entry.event == event for entry in self.since(begun)):
            if time.monotonic() > deadline:
                return False
            time.sleep(0.2)
        return True

    @property
    def document(self) -> Any:
        """The rollout document as JSON."""
        return json.loads((self.checkout.root / ".observatory/rollout/local.json").read_text())

    @property
    def sandbox(self) -> Sandbox:
        """The runtime of the stack's daemons."""
        return Sandbox(self.checkout.home, Path(self.checkout.environment["OBSERVATORY_ROOTFS"]))

    def _users(self, habits: Habits | None, late_s: float) -> Users | None:
        if habits is None:
            return None
        url, key, ca_file = (self.checkout.output(name) for name in ("service_url", "api_key", "ca_file"))
        return Users(url=url, api_key=key, ca_file=ca_file, habits=habits, late_s=late_s)

    def _ended(self, process: subprocess.Popen[str]) -> str:
        """Wait for the command and return its last message; a deployment that is paused or has no end is aborted."""
        deadline, undecided = time.monotonic() + DECIDED_S, ""
        while True:
            try:
                _, err = process.communicate(timeout=POLL_S)
                return undecided or _last_message(err)
            except subprocess.TimeoutExpired:
                if not undecided and (undecided := self._undecided(deadline)):
                    self.checkout.exit_code("rollout", "abort")
                elif time.monotonic() > deadline + ABORTED_S:
                    process.kill()

    def _undecided(self, deadline: float) -> str:
        """Return why a deployment will not end by itself; empty if it may."""
        deployment = self.document["deployment"] or {}
        if deployment.get("status") == "paused":
            return f"paused: {deployment.get('reason')}"
        return f"undecided after {DECIDED_S:.0f} s" if time.monotonic() > deadline else ""

    def _judged(self, code: int, said: str, seconds: float, begun: float, responses: list[Response]) -> Judgement:
        noted = self.since(begun)
        self.touched = any(entry.event == "start" for entry in noted)
        shift = next((entry for entry in noted if entry.event == "shift"), None)
        undecided = next((word for word in ("undecided", "paused") if said.startswith(word)), None)
        status = undecided or self._status(code, noted)
        if shift is None:
            return Judgement(status=status, said=said, seconds=seconds, gates=gates_of(noted, said))
        wall = time.time() - time.monotonic()
        ended = next((entry.at for entry in noted if entry.event in {"rolled-back", "promoted"}), time.time())
        felt = [each for each in responses if shift.at <= each.ended + wall and each.at + wall <= ended + 1]
        # That the old fleet is late under load of the machine is no harm of the version's.
        bad = sorted((each for each in felt if each.wrong and not (each.late and each.version == OLD)), key=_end)
        first = bad[0].ended + wall if bad else None
        weights = shift.details.get("weights", {})
        target = self.document["deployment"]["target"]
        return Judgement(
            status=status,
            said=said,
            seconds=seconds,
            gates=gates_of(noted, said),
            shifted=weights.get(target, 0) / 100,
            first_bad_s=first and first - shift.at,
            back_s=ended - (first or shift.at) if status == "rolled-back" else None,
            hurt=len(bad),
            requests=len(felt),
            examples=tuple(dict.fromkeys(f"{each.kind}: {each.wrong}" for each in bad))[:3],
        )

    def _status(self, code: int, noted: list[Entry]) -> str:
        if any(entry.event == "tests-unjudged" for entry in noted):
            return UNJUDGED
        if not any(entry.event in {"start", "shift"} for entry in noted):
            return "refused" if code else "promoted"
        status = str(self.document["deployment"]["status"])
        return UNJUDGED if status == "preparing" else status


def gates_of(noted: Sequence[Entry], said: str) -> tuple[str, ...]:
    """Return what found a version, from the entries of its deployment and the last message of the command."""
    events = {entry.event for entry in noted}
    if "tests-failed" in events:
        return (TRIAL,)
    if "start" in events and "shift" not in events:
        return (INSTALLATION,)
    if "no metric" in said:
        return (METRICS,)
    last = next((entry for entry in reversed(noted) if entry.event == "gate"), None)
    findings = last.details.get("findings", ()) if last else ()
    return tuple(dict.fromkeys(each["kind"] for each in findings if each["decision"] == "failed"))


def _end(response: Response) -> float:
    return response.ended


def _last_message(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    told = next((number for number, line in enumerate(lines) if line.startswith("error:")), len(lines) - 1)
    return " ".join(line.strip() for line in lines[max(told, 0) :])[:400]


Case = TypeVar("Case")


def on_stacks(
    cases: Iterable[tuple[str, Case]], deploy: Callable[[Judged, Case], Judgement], outcome: Outcome, kept: Kept
) -> Iterator[tuple[Case, Judgement]]:
    """Deploy each named case and yield its end; a new stack replaces one that a case has left beyond repair.

    The ends of cases that were kept by an earlier run come first.
    """
    ends = TypeAdapter(Judgement)
    waiting: deque[tuple[str, Case]] = deque()
    for name, case in cases:
        if found := kept.find(name):
            yield case, ends.validate_python(found)
        else:
            waiting.append((name, case))
    while waiting:
        with a_stack() as stack:
            broken = False
            while waiting and not broken:
                name, case = waiting.popleft()
                try:
                    end = deploy(stack, case)
                    kept.add(name, ends.dump_python(end, mode="json"))
                    yield case, end
                    stack.restore()
                except Exception as error:  # whatever it is, the other cases are still to be seen
                    broken = True
                    outcome.failed += 1
                    outcome.failures.append(f"{case}: the stack is beyond repair: {error!r}"[:2000])


@contextlib.contextmanager
def a_stack() -> Iterator[Judged]:
    """Yield a stack of its own with the old version; it is ended whatever happened."""
    with tempfile.TemporaryDirectory(prefix="observatory-judged-") as directory:
        root = Path(directory) / "checkout"
        root.mkdir()
        checkout = Checkout.copy(root, rootfs=Workspace(root=SOURCE, stack="local").ensure_rootfs())
        try:
            checkout.run("up", *EMBEDDED)
            yield Judged(checkout=checkout)
        finally:
            checkout.kill_all()
