"""Earlier releases: what each left on a machine, as `scripts/record_release.py` recorded it, and its sources.

Owns installing a recording in a checkout, checking a release out, and replacing its sources by this checkout's.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import quote

import yaml

from observatory.engines.embedded.secrets import Crypter
from observatory.settings import Ports
from tests.support import reaper
from tests.support.checkout import SOURCE, Checkout
from tests.support.ports import free_port, free_ports

RECORDINGS = SOURCE / "tests/upgrades"
CHECKPOINT = "backend/.pulumi/stacks/llm-observatory/local.json"
CIPHERTEXT = re.compile(r'(?<="ciphertext":")[^"]+')
# The resources that `up` changes on a stack of a release, by version. CHANGELOG.md says so too.
CHANGED = {
    "0.1.0": {
        *("access", "cluster-configuration", "machine", "role-settings", "schema", "scheduler"),
        *("alert-receiver", "alertmanager", "etcd", "haproxy", "patroni", "pgbouncer", "prometheus", "valkey"),
        *("node-exporter", "pgbackrest-exporter", "pgbouncer-exporter", "postgres-exporter", "redis-exporter"),
    }
}
# Those that get further inputs, which their providers do not compare.
EXTENDED = {"0.1.0": {"weights", "storage-blue-1", "storage-blue-2", "storage-green-1", "storage-green-2"}}
# The resources that `up` creates on it.
CREATED = {
    "0.1.0": {"backup-passphrase-2", "cache-exporter-password", "collector", "monitoring", "request-metrics"},
}
MACHINE = "pulumi-python:dynamic/local:Machine"


@dataclass(frozen=True)
class Recorded:
    """One recorded release."""

    directory: Path

    @cached_property
    def facts(self) -> dict[str, Any]:
        """The content of `recorded.json`: version, commit, place, provider classes, outputs and AWS plans."""
        return dict(json.loads(self.text("recorded.json")))

    @property
    def commit(self) -> str:
        """The commit that the release was recorded from."""
        return str(self.facts["commit"])

    @property
    def changed(self) -> set[str]:
        """The names of the resources that the first `up` of the current code changes."""
        return CHANGED.get(self.facts["version"], set())

    @property
    def extended(self) -> set[str]:
        """The names of the resources that get further inputs, by which nothing changes."""
        return EXTENDED.get(self.facts["version"], set())

    @property
    def created(self) -> set[str]:
        """The names of the resources that the first `up` of the current code creates."""
        return CREATED.get(self.facts["version"], set())

    def text(self, name: str) -> str:
        """Return the text of a recorded file."""
        return (self.directory / name).read_text()

    def revisions(self, document: str) -> list[Any]:
        """Return every content of a document during the recording, oldest first."""
        return [json.loads(line) for line in self.text(f"revisions/{document}.jsonl").splitlines()]

    def resources(self) -> list[dict[str, Any]]:
        """Return the resources of the recorded Pulumi state, as they are in the file."""
        return list(json.loads(self.text(f"state/{CHECKPOINT}"))["checkpoint"]["latest"]["resources"])

    def install(self, checkout: Checkout, rootfs: Path) -> None:
        """Put the recorded files into a checkout, as if the release had run there."""
        state = checkout.root / ".observatory"
        shutil.copytree(self.directory / "state", state)
        shutil.copytree(self.directory / "settings", checkout.root, dirs_exist_ok=True)
        (state / CHECKPOINT).write_text(self._relocated(str(checkout.root)))
        self.lend_rootfs(checkout, rootfs)

    def lend_rootfs(self, checkout: Checkout, rootfs: Path) -> None:
        """Link a root filesystem where the release builds one: the state of a stack names that path."""
        [recorded] = [each["outputs"]["rootfs"] for each in self.resources() if each["type"] == MACHINE]
        place = checkout.root / Path(recorded).relative_to(self.facts["place"])
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(rootfs)

    def check_out(self, root: Path) -> Checkout:
        """Return a checkout of the release's commit, on ports of its own.

        Its commands run with the packages of this process: a release's own virtual environment takes half a minute.
        """
        root.mkdir()
        archive = subprocess.run(["git", "archive", self.commit], cwd=SOURCE, check=True, capture_output=True)
        subprocess.run(["tar", "-x"], cwd=root, input=archive.stdout, check=True)
        reaper.watch(root)
        checkout = Checkout(root=root, environment={"PYTHONPATH": str(root), "COLUMNS": "200"})
        known = yaml.safe_load(self.text("settings/Pulumi.local.yaml"))["config"]["llm-observatory:ports"]
        checkout.configure(ports={name: port for name, port in free_ports().items() if name in known})
        return checkout

    def upgrade(self, checkout: Checkout) -> None:
        """Replace the release's files by those of this checkout, as `git pull` does; the stack's settings stay.

        New settings of ports get a free one instead of their default, which another stack of the machine may have.
        """
        settings = checkout.root / "Pulumi.local.yaml"
        kept = settings.read_text()
        for name in _git("ls-tree", "-r", "--name-only", self.commit).splitlines():
            (checkout.root / name).unlink()
        Checkout.copy(checkout.root, rootfs=None)
        settings.write_text(kept)
        # From the single ports: a block might have a known one that does not listen now, such as that of trials.
        checkout.configure(ports={name: free_port() for name in Ports.model_fields} | checkout.ports())

    def _relocated(self, place: str) -> str:
        """Return the Pulumi state with another path of the checkout, also inside its secrets."""
        text, recorded = self.text(f"state/{CHECKPOINT}"), self.facts["place"]
        salt = json.loads(text)["checkpoint"]["latest"]["secrets_providers"]["state"]["salt"]
        crypter = Crypter(self.text("state/passphrase"), salt)

        def relocate(found: re.Match[str]) -> str:
            secret = crypter.decrypt(found[0]).replace(recorded, place)
            return crypter.encrypt(secret.replace(quote(recorded, safe=""), quote(place, safe="")))  # as in URLs

        return CIPHERTEXT.sub(relocate, text).replace(recorded, place)


def recorded_releases() -> list[Recorded]:
    """Return every recorded release, oldest first."""
    found = [Recorded(file.parent) for file in RECORDINGS.glob("*/recorded.json")]
    return sorted(found, key=lambda each: [int(number) for number in each.directory.name.split(".")])


def has_commit(commit: str) -> bool:
    """Return whether the history here reaches a commit; that of a shallow clone may not."""
    command = ["git", "cat-file", "-e", f"{commit}^{{commit}}"]
    return subprocess.run(command, cwd=SOURCE, capture_output=True, check=False).returncode == 0


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=SOURCE, check=True, capture_output=True, text=True).stdout
