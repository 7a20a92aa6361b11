"""A stack with several versions in its store, a load that runs meanwhile, and what a delivery left behind."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import httpx

from observatory.documents.journal import Entry, entries
from observatory.files.sockets import short_path
from observatory.operations.releases import add_release
from observatory.workspace import Workspace
from tests.support import waiting
from tests.support.checkout import UP_TIMEOUT_S, Checkout
from tests.support.releases import variant

EMBEDDED = ("--engine", "embedded")
VERSIONS = {
    "v0.2.0": "good",
    "v0.3.0": "failing",
    "v0.4.0": "unready",
    "v0.5.0": "good",
    "v0.7.0": "good",
    "v0.8.0": "broken",
    "v0.12.0": "good",
}
SCHEMA_MIN = {"v0.5.0": 99, "v0.7.0": 4}  # of these versions' manifests
DELIVERY = {
    "bake_seconds": 12,
    "gates": {"minimum_requests": 10, "deadline_s": 40, "saturation": 0.8},
    "start_seconds": 300,  # a busy machine takes many times as long as a quiet one
}
RATE = 40  # requests a second: enough to judge, little enough for two busy cores
READ = "/v1/traces?limit=1"


def bring_up_with_versions(checkout: Checkout, *versions: str) -> None:
    """Bring a stack up with versions in its store, good and bad."""
    checkout.configure(delivery=DELIVERY)
    checkout.run("up", *EMBEDDED)
    first = checkout.root / ".observatory/releases/v0.1.0.tar.gz"
    key = (checkout.root / ".observatory/signing-key.pem").read_text()
    workspace = Workspace(root=checkout.root, stack="local")
    for version in versions:
        fault, schema_min = VERSIONS[version], SCHEMA_MIN.get(version)
        made = variant(first, version, checkout.root / "made", key=key, fault=fault, schema_min=schema_min)
        add_release(workspace, made)
        made.unlink()  # it is large


class Load:
    """Readers and writers at a fixed pace, until stopped; `failed` is every answer above 299 and every error."""

    def __init__(self, stack: Checkout, rate: float = RATE) -> None:
        self._pause_s = 4 / rate
        self.url, self.key, self.trusted = stack.output("service_url"), stack.output("api_key"), stack.trusted()
        self.versions: Counter[str] = Counter()
        self.failed: list[str] = []
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(number,)) for number in range(4)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _run(self, number: int) -> None:
        headers = {"Authorization": f"Bearer {self.key}"}
        with httpx.Client(base_url=self.url, headers=headers, verify=self.trusted) as client:
            while not self._stop.wait(self._pause_s):
                try:
                    self._note(client.post("/v1/logs", json={"items": [line()]}) if number % 2 else client.get(READ))
                except httpx.HTTPError as error:
                    self.failed.append(repr(error))

    def _note(self, answer: httpx.Response) -> None:
        self.versions[answer.headers.get("X-Observatory-Version", "none")] += 1
        if answer.is_error:
            self.failed.append(f"{answer.status_code} {answer.text[:100]}")


def line() -> dict[str, str]:
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    return {"ts": now, "log_level": "info", "message": "load"}


def notifications_of(stack: Checkout, channel: str, deployment: str | None = None) -> list[str]:
    """Return the notifications that the local receiver got, oldest first: kinds, or PagerDuty's actions."""
    url = f"https://127.0.0.1:{stack.ports()['alert_receiver']}/alerts?receiver=delivery-{channel}"
    got = [record["notification"] for record in httpx.get(url, verify=stack.monitoring()).raise_for_status().json()]
    if channel == "pagerduty":
        return [event["event_action"] for event in got]
    return [each["kind"] for each in got if each["deployment"] == deployment]


def answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def released(own: Checkout, version: str) -> Any:
    """Deploy a release by the workflow; a scrape that a busy machine missed is tolerated."""
    process = own.start("release", "deploy", version, *EMBEDDED, "--output", "json")
    out, err = process.communicate(timeout=UP_TIMEOUT_S)
    assert process.returncode in (0, 1), err
    done = json.loads(out)
    assert "verification" in done, err
    ill = [check["name"] for check in done["verification"]["checks"] if check["verdict"] != "passed"]
    assert ill in ([], ["monitoring"]), done["verification"]
    return done


def worker(stack: Checkout) -> str | None:
    """Return the pid of the HAProxy that answers, or None while none does."""
    with short_path(stack.home / "run") as run, socket.socket(socket.AF_UNIX) as connection:
        try:
            connection.connect(f"{run}/haproxy.sock")
            connection.sendall(b"show info\n")
            info = b"".join(iter(lambda: connection.recv(65536), b"")).decode()
        except OSError:
            return None
    return next((line.split()[1] for line in info.splitlines() if line.startswith("Pid:")), None)


def moves_of(stack: Checkout, deployment: str) -> list[tuple[str, list[str]]]:
    """Return which instances a rolling update moved, and moved back."""
    noted = noted_of(stack, deployment)
    return [(entry.event, entry.details["instances"]) for entry in noted if entry.event in {"moved", "moved-back"}]


def noted_of(stack: Checkout, deployment: str) -> list[Entry]:
    """Return the journal's entries of a deployment."""
    noted = entries(stack.root / ".observatory/rollout/local.journal.jsonl")
    return [entry for entry in noted if entry.details.get("deployment") == deployment]


def out_of_it(stack: Checkout) -> list[str]:
    """Return the instances of the blue fleet that the document has as out."""
    return list((document(stack)["blue"]["rolling"] or {"draining": []})["draining"])


def document(stack: Checkout) -> Any:
    """Return the rollout document."""
    return json.loads((stack.root / ".observatory/rollout/local.json").read_text())


def versions_of(stack: Checkout) -> set[str]:
    """Return what the blue fleet's instances themselves say that they run."""
    first = stack.ports()["blue"]
    return {httpx.get(f"http://127.0.0.1:{port}/health").json()["version"] for port in (first, first + 1)}


def until(condition: Callable[[], Any]) -> None:
    """Wait until something holds; a change takes minutes on a busy machine."""
    waiting.until(condition, "it to hold", timeout_s=UP_TIMEOUT_S, pause_s=0.1)
