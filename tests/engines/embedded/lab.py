"""Runs a small program on either engine, and returns results that can be compared."""

from __future__ import annotations

import json
import operator
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from tenacity import Retrying, retry_if_result, stop_after_delay, wait_fixed

from observatory.engines import embedded as engine
from observatory.engines.cli.automation import backend_url
from observatory.engines.embedded import DiagnosticEvent, EngineError, Event, Result, StackOptions

STACK = "dev"
SECRET_SIGNATURE = "4dabf18193072939515e22adb298388d"
TWO = 'a = Thing("a", key=Output.secret("hush-hush"))\nb = Thing("b", size=a.twice)\npulumi.export("twice", b.twice)\n'
HELD = 'a = Thing("a")\nb = Thing("b", Options(depends_on=[a]), wait="go")\nc = Thing("c", Options(depends_on=[b]))\n'
TIMEOUT_S = 240  # generous: the machine may be busy
_HEAD = """\
import pulumi
from pulumi import Output, ResourceOptions as Options
from things import *
"""
_OPERATIONS = {"preview": engine.preview, "up": engine.up, "refresh": engine.refresh, "destroy": engine.destroy}
_INCIDENTAL = {"created", "modified", "sourcePosition", "stackTrace"}


@dataclass(kw_only=True)
class Outcome:
    """The result of one run. Steps and calls are sorted, because concurrent work has no order.

    Attributes:
        steps: Operations as ``operation name``, without ``same``.
        ended: The steps in the order in which they ended.
        failed: Whether the run failed.
        message: The message of a failed run.
        calls: The provider calls.
        state: The resources in the state by URN and ``delete``, without incidental fields; secrets are ``[secret]``.
        outputs: The stack's outputs, secrets in plain text.
    """

    steps: list[str]
    ended: list[str]
    failed: bool
    message: str = ""
    calls: list[str] = field(default_factory=list)
    state: dict[str, Any] = field(default_factory=dict)
    outputs: dict[str, Any] = field(default_factory=dict)


class Lab:
    """A project, its backend, and what its provider finds, in one directory.

    Attributes:
        actual: What the provider reads, by resource name.
        events: The events of the last run on the embedded engine.
    """

    def __init__(self, home: Path, *, config: str = "") -> None:
        self.home = home
        self.project, self.backend = home / "project", home / "backend"
        self.project.mkdir(parents=True)
        self.backend.mkdir()
        shutil.copy(Path(__file__).with_name("things.py"), self.project)
        runtime = {"name": "python", "options": {"virtualenv": sys.prefix}}
        (self.project / "Pulumi.yaml").write_text(json.dumps({"name": "lab", "runtime": runtime}))
        if config:
            (self.project / f"Pulumi.{STACK}.yaml").write_text(config)
        self.actual: dict[str, Any] = {}
        self.events: list[Event] = []

    @property
    def checkpoint(self) -> Path:
        return self.backend / ".pulumi/stacks/lab" / f"{STACK}.json"

    @property
    def locks(self) -> list[Path]:
        return list((self.backend / ".pulumi/locks").rglob("*.json"))

    @property
    def options(self) -> StackOptions:
        return StackOptions(cwd=self.project, stack=STACK, backend=self.backend, passphrase="correct horse")

    @property
    def environment(self) -> dict[str, str]:
        return {
            **os.environ,
            "ENGINE_LAB": str(self.home),
            "PULUMI_BACKEND_URL": backend_url(self.backend),
            "PULUMI_CONFIG_PASSPHRASE": "correct horse",
            "PULUMI_FALLBACK_TO_STATE_SECRETS_MANAGER": "true",
            "PULUMI_SKIP_UPDATE_CHECK": "true",
            "PULUMI_DISABLE_AUTOMATIC_PLUGIN_ACQUISITION": "true",
        }

    def prepare(self) -> None:
        """Prepare for a run: no calls recorded yet, and what the provider reads."""
        (self.home / "calls.jsonl").write_text("")
        (self.home / "actual.json").write_text(json.dumps(self.actual))
        os.environ["ENGINE_LAB"] = str(self.home)

    def start(self, operation: str = "up") -> subprocess.Popen[str]:
        """Start an operation on the embedded engine in a process of its own."""
        self.prepare()
        return subprocess.Popen(
            [sys.executable, "-m", "observatory.engines.embedded", operation, "--stack", STACK, "--json"],
            cwd=self.project,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def host_pids(self) -> list[int]:
        """Return the processes that host this lab's dynamic providers."""
        processes = psutil.process_iter(["cmdline", "environ"])
        found = (p for p in processes if (p.info["environ"] or {}).get("ENGINE_LAB") == str(self.home))
        return [process.pid for process in found if "pulumi.dynamic" in " ".join(process.info["cmdline"] or [])]

    def log(self) -> str:
        """Return the provider calls recorded since the last run began."""
        return (self.home / "calls.jsonl").read_text()

    def has_begun(self, operation: str, name: str) -> bool:
        """Return whether the provider has begun an operation on a resource since the last run began."""
        calls = (json.loads(line) for line in self.log().splitlines())
        return any(call[0] == operation and call[-1].get("name") == name for call in calls)

    def diagnostics(self) -> list[tuple[str, str]]:
        """Return the messages of the last run as (severity, message)."""
        return [(event.severity, event.message) for event in self.events if isinstance(event, DiagnosticEvent)]

    def program(self, body: str) -> None:
        """Write the program: the imports, then ``body``.

        Removes the bytecode: Python compares its time in seconds and its size, which two programs may share.
        """
        shutil.rmtree(self.project / "__pycache__", ignore_errors=True)
        (self.project / "__main__.py").write_text(_HEAD + body)

    def embedded(self, operation: str) -> Outcome:
        """Run an operation on the embedded engine, in this process."""
        self.prepare()
        self.events, message, failed = [], "", False
        result: Result | None
        try:
            result = _OPERATIONS[operation](self.options, on_event=self.events.append)
        except EngineError as error:
            failed, message, result = True, str(error), error.result
        steps = [f"{step.operation} {step.name}" for step in result.steps] if result else []
        return self._outcome(steps, failed, message)

    def cli(self, operation: str, *flags: str) -> Outcome:
        """Run an operation on the CLI."""
        self.prepare()
        if not engine.exists(self.options):
            self.pulumi("stack", "init", STACK)
        yes = [] if operation == "preview" else ["--yes", "--skip-preview"]
        done = self.pulumi(operation, "--stack", STACK, "--json", *yes, *flags, check=False)
        steps = _preview_steps(done.stdout) if operation == "preview" else _update_steps(done.stdout)
        return self._outcome(steps, done.returncode != 0, done.stdout + done.stderr)

    def pulumi(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run the CLI."""
        return subprocess.run(
            ["pulumi", *arguments],
            cwd=self.project,
            env=self.environment,
            capture_output=True,
            text=True,
            check=check,
            timeout=TIMEOUT_S,
        )

    def state(self) -> dict[str, Any]:
        """Return the checkpoint's latest deployment."""
        document: dict[str, Any] = json.loads(self.checkpoint.read_text())["checkpoint"].get("latest") or {}
        return document

    def names(self) -> list[str]:
        """Return the names of the resources in the state, providers left out."""
        resources = self.state().get("resources", [])
        return [r["urn"].rpartition("::")[2] for r in resources if not r["type"].startswith("pulumi:")]

    def _outcome(self, steps: list[str], failed: bool, message: str) -> Outcome:
        steps = [step for step in steps if not step.startswith("same ")]
        state = _comparable(self.state()) if self.checkpoint.exists() else {}
        outputs = engine.outputs(self.options, show_secrets=True) if self.checkpoint.exists() else {}
        return Outcome(
            steps=sorted(steps),
            ended=steps,
            failed=failed,
            message=message,
            calls=sorted(self.log().splitlines()),
            state=state,
            outputs=outputs,
        )


def _preview_steps(text: str) -> list[str]:
    start = text.find("{")
    steps = json.loads(text[start:])["steps"] if start >= 0 else []
    return [f"{step['op']} {step['urn'].rpartition('::')[2]}" for step in steps]


def _update_steps(text: str) -> list[str]:
    begun: Counter[str] = Counter()
    for line in text.splitlines():
        event = json.loads(line) if line.startswith("{") else {}
        for kind, change in (("resourcePreEvent", 1), ("resOpFailedEvent", -1)):
            if kind in event:
                metadata = event[kind]["metadata"]
                begun[f"{metadata['op']} {metadata['urn'].rpartition('::')[2]}"] += change
    return list(begun.elements())


def _comparable(latest: dict[str, Any]) -> dict[str, Any]:
    resources = latest.get("resources", [])
    ids = {r["id"]: "<id>" for r in resources if r["type"].startswith("pulumi:providers:")}
    return {f"{r['urn']} {r.get('delete', False)}": _neutral(r, ids) for r in resources}


def _neutral(value: Any, ids: dict[str, str]) -> Any:
    if isinstance(value, dict):
        if SECRET_SIGNATURE in value:
            return "[secret]"
        neutral = {key: _neutral(child, ids) for key, child in value.items() if key not in _INCIDENTAL}
        if "dependencies" in neutral:  # the SDK sends a set, and the CLI keeps its order
            neutral["dependencies"] = sorted(neutral["dependencies"])
        if "propertyDependencies" in neutral:  # a refresh by the CLI drops the empty ones
            needs = neutral["propertyDependencies"].items()
            neutral["propertyDependencies"] = {key: sorted(urns) for key, urns in needs if urns}
        return {key: child for key, child in neutral.items() if child != {}}
    if isinstance(value, list):
        return [_neutral(child, ids) for child in value]
    for id_, mark in ids.items():
        value = value.replace(id_, mark) if isinstance(value, str) else value
    return value


def eventually(condition: Callable[[], object]) -> None:
    """Wait until the condition holds.

    Raises:
        tenacity.RetryError: it does not hold in time.
    """
    is_false = retry_if_result(operator.not_)
    Retrying(retry=is_false, wait=wait_fixed(0.02), stop=stop_after_delay(TIMEOUT_S))(condition)
