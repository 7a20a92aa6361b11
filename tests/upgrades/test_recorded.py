"""The current code reads what each earlier release left on a machine, and plans nothing new for it."""

from __future__ import annotations

import base64
import importlib
import json
import pickletools
import re
from collections.abc import Iterator
from typing import Any

import pytest
from pulumi.dynamic import ResourceProvider

from observatory.documents.journal import entries
from observatory.documents.logins import AccessDocument
from observatory.documents.rollout import RolloutDocument
from observatory.engines import embedded
from observatory.platforms import open_platform
from observatory.platforms.local.platform import CHECKOUT_KEY
from observatory.platforms.stack_state import engine_options
from observatory.scheduling.records import RecordStore, RunResult
from observatory.settings import load_file
from observatory.workspace import Workspace
from tests.support.checkout import Checkout
from tests.support.upgrades import Recorded, recorded_releases

RENAMED = {"out": "draining"}  # fields of documents that are read by either name
# On AWS the second bucket was a copy of the first; pgBackRest writes to it now, with a passphrase of its own.
REPLICATED = {"0.1.0": {"production"}}
MADE_ON_AWS = {
    "0.1.0": {
        *("database-9188", "database-address", "scrape-collector"),
        *(f"dashboard-{name}" for name in ("overview", "service", "delivery", "database", "timescaledb", "backups")),
    }
}
REPLICATION = {
    ("aws:iam/role:Role", "backups-replication"),
    ("aws:iam/rolePolicy:RolePolicy", "backups-replication"),
    ("aws:s3/bucketReplicationConfig:BucketReplicationConfig", "backups"),
}
DEFAULT_PROVIDER = "pulumi:providers:pulumi-python::default"  # the engine's, not the program's


@pytest.fixture(scope="module", params=recorded_releases(), ids=lambda recorded: recorded.directory.name)
def recorded(request: pytest.FixtureRequest) -> Recorded:
    """A recorded release."""
    found: Recorded = request.param
    return found


@pytest.fixture(scope="module")
def checkout(recorded: Recorded, rootfs: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Checkout]:
    """The current code with the files of the recorded release."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("OBSERVATORY_ROOTFS", raising=False)  # the recorded stack has its own
        upgraded = Checkout.copy(tmp_path_factory.mktemp("recorded") / "checkout", rootfs=None)
        recorded.install(upgraded, rootfs)
        yield upgraded


@pytest.fixture(scope="module")
def workspace(checkout: Checkout) -> Workspace:
    return Workspace(root=checkout.root, stack="local")


@pytest.fixture(scope="module")
def plan(checkout: Checkout) -> dict[str, Any]:
    """What `up` would do on a stack of the recorded release whose daemons are down."""
    return dict(checkout.json("preview", "--engine", "embedded"))


def test_every_revision_of_the_rollout_document_is_read_without_loss(recorded: Recorded) -> None:
    revisions = recorded.revisions("rollout")
    assert {(each["deployment"] or {}).get("strategy") for each in revisions} >= {"canary", "rolling"}
    for revision in revisions:
        read = RolloutDocument.model_validate_json(json.dumps(revision))
        assert read.model_dump(mode="json", exclude_unset=True) == with_current_names(revision)


def test_every_revision_of_the_logins_document_is_read_without_loss(recorded: Recorded) -> None:
    revisions = recorded.revisions("access")
    assert any(each["app"]["retiring"] for each in revisions)
    for revision in revisions:
        read = AccessDocument.model_validate_json(json.dumps(revision))
        assert read.model_dump(mode="json", exclude_unset=True) == revision


def test_the_documents_of_the_stack_are_found(recorded: Recorded, workspace: Workspace) -> None:
    rollout, access = workspace.rollout.read(), workspace.access.read()
    assert rollout is not None
    assert rollout.model_dump(mode="json", exclude_unset=True) == with_current_names(recorded.revisions("rollout")[-1])
    assert access is not None
    assert access.model_dump(mode="json", exclude_unset=True) == recorded.revisions("access")[-1]


def test_every_journal_entry_is_read(recorded: Recorded, workspace: Workspace) -> None:
    lines = recorded.text("state/rollout/local.journal.jsonl").splitlines()
    assert [json.loads(entry.line) for entry in entries(workspace.journal)] == [json.loads(line) for line in lines]


def test_releases_keep_their_signature_and_approval(workspace: Workspace) -> None:
    trusted = open_platform(workspace).trusted_keys()
    manifests = [workspace.releases.manifest(version) for version in workspace.releases.versions()]
    assert {manifest.signed_by(trusted) for manifest in manifests} == {CHECKOUT_KEY}
    approved = {manifest.version for manifest in manifests if workspace.approvals.read(manifest)}
    assert approved == {"v0.2.0"}


def test_records_of_scheduled_jobs_are_read(workspace: Workspace) -> None:
    store = RecordStore(sandbox=workspace.sandbox)
    results = {name: store.read(name).result for name in ("backup-full", "backup-differential", "log-rotation")}
    assert results.pop("log-rotation") is RunResult.SUCCEEDED
    assert set(results.values()) == {RunResult.NEVER}


def test_the_stack_files_are_read(recorded: Recorded) -> None:
    platforms = {
        file.name: load_file(file).platform for file in (recorded.directory / "settings").glob("Pulumi.*.yaml")
    }
    assert platforms == {"Pulumi.local.yaml": "local", "Pulumi.staging.yaml": "aws", "Pulumi.production.yaml": "aws"}


def test_the_pulumi_state_is_read_with_its_secrets(recorded: Recorded, workspace: Workspace) -> None:
    outputs = embedded.outputs(engine_options(open_platform(workspace)), show_secrets=True)
    assert sorted(outputs) == recorded.facts["outputs"]
    assert outputs["active_fleet"] == recorded.revisions("rollout")[-1]["deployment"]["target"]
    assert outputs["database_url"].startswith("postgresql://app_b:")  # the login after the recorded rotation
    assert len(embedded.resources(engine_options(open_platform(workspace)))) == len(recorded.resources())


def test_every_dynamic_provider_class_has_its_name(recorded: Recorded) -> None:
    in_state = {provider_class(each["inputs"]["__provider"]) for each in recorded.resources() if dynamic(each)}
    assert in_state <= set(recorded.facts["providers"])
    for name in recorded.facts["providers"]:
        module, _, cls = name.partition(":")
        assert issubclass(getattr(importlib.import_module(module), cls), ResourceProvider), name


def test_the_program_declares_every_recorded_resource_and_no_other(recorded: Recorded, plan: dict[str, Any]) -> None:
    declared = {step["urn"] for step in plan["steps"] if step["operation"] != "create"}
    assert {step["name"] for step in plan["steps"] if step["operation"] == "create"} == recorded.created
    assert declared == {each["urn"] for each in recorded.resources() if not each["urn"].endswith(DEFAULT_PROVIDER)}
    assert {step["operation"] for step in plan["steps"]} <= {
        "same",
        "update",
        "create",
    }  # updates: the daemons are down


def test_no_other_input_of_a_recorded_resource_changes(recorded: Recorded, plan: dict[str, Any]) -> None:
    steps = [step for step in plan["steps"] if step["operation"] != "create"]
    changed = {step["name"]: step["changes"] for step in steps if step["changes"]}
    assert set(changed) == recorded.changed | recorded.extended, changed


def test_every_recorded_output_is_exported(recorded: Recorded, plan: dict[str, Any]) -> None:
    assert set(plan["outputs"]) >= set(recorded.facts["outputs"])


@pytest.mark.parametrize("stack", ["staging", "production"])
def test_an_aws_stack_keeps_its_resources_and_outputs(recorded: Recorded, checkout: Checkout, stack: str) -> None:
    plan = checkout.json("preview", "--environment", stack, "--engine", "embedded")
    expected = recorded.facts["plans"][stack]
    declared = {step["urn"] for step in plan["steps"]}
    replicated = stack in REPLICATED.get(recorded.facts["version"], set())
    gone, made = (REPLICATION, {"backup-passphrase-2"}) if replicated else (set(), set())
    made |= MADE_ON_AWS.get(recorded.facts["version"], set())
    assert {_type_and_name(urn) for urn in set(expected["urns"]) - declared} == gone
    new = {_type_and_name(urn)[1] for urn in declared - set(expected["urns"])}
    assert {re.sub(r"^[\d.]+-\d+-", "", name) for name in new} == made  # rules of the firewall begin with a network
    assert set(plan["outputs"]) >= set(expected["outputs"])


def with_current_names(document: Any) -> Any:
    """Return a document with the fields that were renamed under their current names."""
    if isinstance(document, dict):
        return {RENAMED.get(name, name): with_current_names(value) for name, value in document.items()}
    return [with_current_names(each) for each in document] if isinstance(document, list) else document


def _type_and_name(urn: str) -> tuple[str, str]:
    """Return the type and the name of a resource of a URN: urn:pulumi:STACK::PROJECT::PARENT$TYPE::NAME."""
    _, _, types, name = urn.split("::")
    return types.rpartition("$")[2], name


def dynamic(resource: dict[str, Any]) -> bool:
    return "__provider" in resource.get("inputs", {})


def provider_class(encoded: str) -> str:
    """Return the `module:Class` that a pickled provider names, without importing it."""
    words = [argument for _, argument, _ in pickletools.genops(base64.b64decode(encoded)) if isinstance(argument, str)]
    return ":".join(words)
