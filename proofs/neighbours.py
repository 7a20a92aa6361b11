"""Another local user and hostile clients attack every listener of a running stack: it stays healthy and unchanged."""

from __future__ import annotations

import hashlib
import os
import pwd
import random
import re
import socket
import tempfile
import time
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import psutil

from observatory.operations.demonstration import spans
from observatory.workspace import Workspace
from proofs.hostile import FORGED, Result, Target, attack
from proofs.record import Outcome
from tests.support.checkout import SOURCE, Checkout
from tests.support.waiting import until

PROMISE = (
    "Another local user sends dangerous requests, garbage, other protocols and silence to every listener of a stack: "
    "no listener is missing in the list, no secret or prompt is answered, and the stack stays healthy and unchanged."
)
REQUESTS = 200  # at most, for each port and round
FIRST_UID, LAST_UID = 50_000, 59_999
UNLISTED = {"trial"}  # listens only during a pre-deployment test
SOCKETS = re.compile(
    r"/srv/run/(collector\.sock|haproxy\.sock(\.\d+\.tmp)?|request-(lines|metrics)\.sock|supervisor\.sock(\.\d+)?"
    r"|(postgresql/)?\.s\.PGSQL\.\d+)"
)
PEM = re.compile(r"-----BEGIN[^-]*PRIVATE KEY-----\n(?P<key>[^-]+)")
SECRET = re.compile(r"[A-Za-z0-9_+/=-]{20,}")
PROMPT = "the neighbours must not read this prompt"


def prove(rounds: int, share: int) -> Outcome:  # noqa: ARG001 - of the interface
    """Attack one stack `rounds` times, each with other draws."""
    outcome, begun = Outcome(promise=PROMISE), time.monotonic()
    if os.geteuid():
        outcome.counts = {"skipped": "only root can become another user"}
        return outcome
    with tempfile.TemporaryDirectory(prefix="observatory-neighbours-") as directory:
        Path(directory).chmod(0o755)  # so that only the stack's own modes protect its files
        root = Path(directory) / "checkout"
        root.mkdir()
        checkout = Checkout.copy(root, rootfs=Workspace(root=SOURCE, stack="local").ensure_rootfs())
        try:
            checkout.run("up", "--engine", "embedded")
            for seed in range(rounds):
                _round(outcome, Neighbourhood(checkout), seed)
        finally:
            checkout.kill_all()
    outcome.seconds = time.monotonic() - begun
    return outcome


def _round(outcome: Outcome, neighbourhood: Neighbourhood, seed: int) -> None:
    found, broken = neighbourhood.attacked(seed)
    outcome.counts["requests"] = outcome.counts.get("requests", 0) + found.requests
    outcome.counts["bytes answered"] = outcome.counts.get("bytes answered", 0) + len(found.answers)
    outcome.counts["listeners"] = len(neighbourhood.ports)
    outcome.failures += [f"round {seed}: {each}" for each in broken]
    outcome.failed += bool(broken)
    outcome.passed += not broken


@dataclass(frozen=True)
class Neighbourhood:
    """A running stack and what its neighbours can reach of it."""

    stack: Checkout

    @property
    def ports(self) -> dict[str, int]:
        """The ports that the stack's settings name and that listen while it runs."""
        return {name: port for name, port in self.stack.ports().items() if name not in UNLISTED}

    def attacked(self, seed: int) -> tuple[Result, list[str]]:
        """Attack the stack as another user; return what that got, and what was not as promised."""
        prompt = f"{PROMPT} {seed}"
        self._store(prompt)
        before, secrets = self.snapshot(), {*self.secrets(), prompt}
        found = self.attack(seed, requests=REQUESTS)
        broken = [*self.unlisted(), *found.broken]
        broken += [f"a secret was answered: {secret[:4]}…" for secret in secrets if secret.encode() in found.answers]
        until(lambda: self.stack.exit_code("status") == 0, "the stack is ready after the attack")
        after = self.snapshot()
        broken += [f"{key} was {before[key]}, is {after[key]}" for key in before if before[key] != after[key]]
        changes = self.stack.json("up", "--engine", "embedded")["summary"]
        broken += [f"`up` repaired something: {changes}"] if set(changes) != {"same"} else []
        return found, broken

    def attack(self, seed: int, *, requests: int) -> Result:
        """Attack the stack as another user, with at most `requests` requests on each port."""
        target = Target(ports=self.ports, home=self.stack.home, pids=tuple(self.stack.processes()))
        return attack(target, uid=unassigned_uid(seed), seed=seed, requests=requests)

    def unlisted(self) -> Iterator[str]:
        """Yield every listener of the stack that its settings do not name, or that others than this machine reach."""
        named = set(self.ports.values())
        for pid in self.stack.processes():
            for each in _connections(pid):
                if found := problem(each, named):
                    yield f"{found}, of process {pid}"

    def snapshot(self) -> dict[str, Any]:
        """Return what an attack must not change."""
        status = self.stack.json("status")
        return {
            "processes": {each["name"]: each["pid"] for each in status["daemons"]},
            "weights": {name: status["rollout"][name]["weight"] for name in ("blue", "green")},
            "silences": self.stack.json("silence", "list"),
            "patroni": httpx.get(f"http://127.0.0.1:{self.ports['patroni']}/config").json(),
            "forged alerts": self._monitoring("alertmanager", "/api/v2/alerts").text.count(FORGED),
            "forged notifications": self._monitoring("alert_receiver", "/alerts").text.count(FORGED),
            "first sample kept": bool(
                self._monitoring("prometheus", "/api/v1/query?query=up").json()["data"]["result"]
            ),
            "traces": self._service().get("/v1/traces", params={"limit": 1}).status_code,
            "files": {str(file.relative_to(self.stack.home)): _digest(file) for file in self._files()},
        }

    def secrets(self) -> Iterator[str]:
        """Yield the secrets of the stack: of its outputs, and of the files that only daemons read."""
        outputs = self.stack.json("outputs", "--show-secrets")
        yield outputs["api_key"]
        for url in (outputs["database_url"], *outputs["database_urls"].values()):
            yield url.split("@")[0].rsplit(":", 1)[-1]
        for file in self._files():
            text = file.read_text(errors="replace")
            if file.suffix in (".pem", ".key"):
                yield from (found["key"].strip().splitlines()[0] for found in PEM.finditer(text))
            elif "password" in file.name or "token" in file.name or file.name in ("restapi.yaml", "users.txt"):
                yield from SECRET.findall(text)

    def _files(self) -> list[Path]:
        return sorted(file for file in (self.stack.home / "etc").rglob("*") if file.is_file())

    def _monitoring(self, port: str, path: str) -> httpx.Response:
        return httpx.get(f"https://127.0.0.1:{self.ports[port]}{path}", verify=self.stack.monitoring(), timeout=60)

    def _service(self) -> httpx.Client:
        headers = {"Authorization": f"Bearer {self.stack.output('api_key')}"}
        return httpx.Client(base_url=self.stack.output("service_url"), headers=headers, verify=self.stack.trusted())

    def _store(self, prompt: str) -> None:
        """Write a trace with a prompt and read it, so that the cache has it too."""
        (item,) = spans(1, now=datetime.now(UTC), seed=random.SystemRandom().getrandbits(32))
        with self._service() as service:
            service.post("/v1/traces", json={"items": [{**item, "input_text": prompt}]}).raise_for_status()
            until(lambda: prompt in service.get(f"/v1/traces/{item['trace_id']}").text, "the prompt is read back")


def unassigned_uid(seed: int) -> int:
    """Return a uid that no user and no process has."""
    used = {process.info["uids"].real for process in psutil.process_iter(["uids"]) if process.info["uids"]}
    used |= {user.pw_uid for user in pwd.getpwall()}
    free = [uid for uid in range(FIRST_UID, LAST_UID) if uid not in used]
    return free[seed % len(free)]


def _connections(pid: int) -> list[Any]:
    with suppress(psutil.Error):  # it has ended
        return list(psutil.Process(pid).net_connections("all"))
    return []


def problem(each: Any, named: Collection[int]) -> str | None:
    """Return why a socket must not be there; None if it listens as the settings say, or does not listen."""
    if each.family == socket.AF_UNIX:
        unlisted = each.laddr and not SOCKETS.fullmatch(each.laddr)
        return f"the unix socket {each.laddr} is not in the list" if unlisted else None
    listens = each.status == psutil.CONN_LISTEN or (each.type == socket.SOCK_DGRAM and not each.raddr)
    if not listens:
        return None
    if each.laddr.port not in named:
        return f"port {each.laddr.port} is in no setting"
    return None if each.laddr.ip in ("127.0.0.1", "::1") else f"port {each.laddr.port} listens at {each.laddr.ip}"


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()[:12]
