"""Record what a release leaves on a machine, which later releases must read: `make record-release`.

Brings up a `local` stack of this checkout in an empty folder, uses it as an operator does, and copies its documents to
`tests/upgrades/VERSION`. What is recorded, and who reads it, is in `tests/upgrades/README.md`.
"""

from __future__ import annotations

import importlib
import inspect
import json
import pkgutil
import platform
import shutil
import subprocess
import sys
import threading
import tomllib
from pathlib import Path
from typing import Any

from pulumi.dynamic import ResourceProvider

import components
from observatory.security.actor import actor
from observatory.security.signatures import make_private_key, public_key
from tests.support.checkout import SOURCE, Checkout

# The recorded paths begin with it on every machine: the tests replace it.
PLACE = Path("/tmp/observatory-recorded")  # noqa: S108 - refused where it exists
ACTOR = "operator@example"
SETTINGS: dict[str, Any] = {
    "fleets": {"size": 2},
    "delivery": {"bake_seconds": 3, "gates": {"minimum_requests": 1, "interval_s": 1}},
}
NEXT = "v0.2.0"
ARTIFACT = f"dist/storage-service-{NEXT}-{platform.machine()}.tar.gz"
DEPLOY = ("deploy", "application", "--version", NEXT)
ENGINE = ("--engine", "embedded")
APPROVERS_KEY = "approver.pem"
USE = (
    ("release", "sign", ARTIFACT),
    ("release", "add", ARTIFACT),
    ("release", "approve", NEXT, "--key", APPROVERS_KEY, "--reason", "for the recording"),
    (*DEPLOY, "--strategy", "canary", "--canary-percentage", "50", *ENGINE),
    ("rollback", "--method", "blue-green", "--emergency"),
    ("up", *ENGINE),
    (*DEPLOY, "--strategy", "rolling", "--batch-size", "1", *ENGINE),
    ("rotate-passwords", "--role", "app", *ENGINE),
    ("backup", "create", "--type", "incremental"),
    ("scheduler", "run", "log-rotation"),
)
KEPT = (
    "passphrase",
    "signing-key.pem",
    "backend/.pulumi/meta.yaml",
    "backend/.pulumi/stacks/*/local.json",
    "backend/.pulumi/history/*/local/*.history.json",
    "rollout/local.json",
    "rollout/local.journal.jsonl",
    "access/local.json",
    "releases/*.json",
    "releases/approvals/local/*.json",
    "stacks/local/data/jobs/*.json",
)


class Revisions(threading.Thread):
    """Collects every content that a document has while a stack is used."""

    def __init__(self, file: Path) -> None:
        super().__init__(daemon=True)
        self.file, self.found, self._end = file, dict[str, Any](), threading.Event()

    def run(self) -> None:
        """Poll the document until `lines` is called."""
        while not self._end.wait(0.02):
            if self.file.exists():
                content = self.file.read_text()
                self.found.setdefault(content, json.loads(content))

    def lines(self) -> str:
        """Stop, and return the contents, oldest first, a line each."""
        self._end.set()
        self.join()
        return "".join(f"{json.dumps(content)}\n" for content in self.found.values())


def main() -> None:
    """Record the checked-out commit as the release that pyproject.toml names."""
    if PLACE.exists():
        raise SystemExit(f"{PLACE} exists: end the recording that runs there, or remove it, and run again")
    target = Path(sys.argv[1]) if sys.argv[1:] else SOURCE / "tests/upgrades" / version()
    checkout = Checkout.copy(PLACE, rootfs=None)
    checkout.configure(**SETTINGS)
    documents = {name: Revisions(PLACE / f".observatory/{name}/local.json") for name in ("rollout", "access")}
    try:
        for document in documents.values():
            document.start()
        use(checkout)
        shutil.rmtree(target, ignore_errors=True)
        copy(checkout, target)
        for name, document in documents.items():
            write(target / f"revisions/{name}.jsonl", document.lines())
        write(target / "recorded.json", json.dumps(facts(checkout), indent=2) + "\n")
        checkout.run("down", "--yes")
    finally:
        checkout.kill_all()
        shutil.rmtree(PLACE)


def use(checkout: Checkout) -> None:
    """Bring the stack up and have each document written."""
    private_key = make_private_key()
    write(PLACE / APPROVERS_KEY, private_key)
    approvers = {"reviewer": public_key(private_key)}
    checkout.configure(delivery={**SETTINGS["delivery"], "trusted_approvers": approvers})
    checkout.run("up", *ENGINE)
    build = [sys.executable, "-m", "service.build", "--version", NEXT, "--output", "dist"]
    subprocess.run(build, cwd=PLACE, check=True)
    for arguments in USE:
        checkout.run(*arguments)


def copy(checkout: Checkout, target: Path) -> None:
    """Copy the stack's documents and the settings of every stack."""
    state = checkout.root / ".observatory"
    for pattern in KEPT:
        found = list(state.glob(pattern))
        if not found:
            raise SystemExit(f"{state}/{pattern}: the release does not have what is to be recorded")
        for file in found:
            write(target / "state" / file.relative_to(state), file.read_text())
    for file in checkout.root.glob("Pulumi.*.yaml"):
        write(target / "settings" / file.name, file.read_text())


def write(file: Path, content: str) -> None:
    """Write a file without this machine's name."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(content.replace(actor(), ACTOR))


def facts(checkout: Checkout) -> dict[str, Any]:
    """Return what no document says: the commit, the provider classes, and what each AWS stack declares."""
    plans = {stack: checkout.json("preview", "--environment", stack, *ENGINE) for stack in ("staging", "production")}
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=SOURCE, check=True, capture_output=True, text=True)
    return {
        "version": version(),
        "commit": commit.stdout.strip(),
        "place": str(PLACE),
        "providers": providers(),
        "outputs": sorted(checkout.json("outputs")),
        "plans": {
            stack: {"urns": sorted(step["urn"] for step in plan["steps"]), "outputs": sorted(plan["outputs"])}
            for stack, plan in plans.items()
        },
    }


def providers() -> list[str]:
    """Return the `module:Class` of each dynamic provider, which users' states name."""
    names = [module.name for module in pkgutil.walk_packages(components.__path__, "components.")]
    members = [each for name in names for each in vars(importlib.import_module(name)).values()]
    classes = {each for each in members if inspect.isclass(each) and issubclass(each, ResourceProvider)}
    return sorted(f"{each.__module__}:{each.__name__}" for each in classes - {ResourceProvider})


def version() -> str:
    """Return the release's version."""
    return str(tomllib.loads((SOURCE / "pyproject.toml").read_text())["project"]["version"])


if __name__ == "__main__":
    main()
