"""Minor and major versions need an open window and another person's approval; patches and continuations do not."""

from __future__ import annotations

import hashlib
import json
import pwd
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from observatory.delivery.approvals import Approval, Change, NotPermittedError, change_between
from observatory.delivery.releases import Manifest, ReleaseError, ReleaseRefusedError
from observatory.documents.journal import entries
from observatory.documents.rollout import Deployment, RolloutDocument
from observatory.operations.release_approvals import approve_release, check_permission
from observatory.platforms import platform_of
from observatory.platforms.signing import sign
from observatory.security import signatures
from observatory.security.actor import actor, user
from observatory.settings import Delivery, LocalSettings
from observatory.settings.windows import WEEKDAYS, Window
from observatory.workspace import Workspace

ALWAYS = Window(days=WEEKDAYS, opens="00:00", closes="00:00")
MYSELF = user()
KEYS = {name: signatures.make_private_key() for name in ("alice", "bob", "mallory", MYSELF)}
APPROVERS = {name: signatures.public_key(key) for name, key in KEYS.items() if name != "mallory"}
NEEDS_APPROVAL = LocalSettings(delivery=Delivery(approval=("minor", "major"), trusted_approvers=APPROVERS))


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    found = Workspace(root=tmp_path, stack="local")
    delivery = {"approval": ["minor", "major"], "trusted_approvers": APPROVERS}
    found.config_file.write_text(json.dumps({"config": {"llm-observatory:delivery": delivery}}))
    found.rollout.create(RolloutDocument.first(version="v0.1.0", sha256="a" * 64, active_fleet="blue"))
    return found


@pytest.fixture
def kept(workspace: Workspace, tmp_path: Path) -> Callable[..., Manifest]:
    def keep(version: str, content: bytes = b"artifact") -> Manifest:
        artifact, manifest = tmp_path / "made.tar.gz", tmp_path / "made.json"
        artifact.write_bytes(content)
        said = {"name": "storage-service", "version": version, "sha256": hashlib.sha256(content).hexdigest()}
        manifest.write_text(json.dumps({**said, "schema_min": 3, "schema_max": 6}))
        sign(workspace, artifact, manifest)
        return workspace.releases.add(artifact, manifest, platform_of(workspace, LocalSettings()).trusted_keys())

    return keep


def closed_now() -> LocalSettings:
    """Return settings whose only window opens in three days."""
    day = WEEKDAYS[(datetime.now(UTC).weekday() + 3) % 7]
    return LocalSettings(delivery=Delivery(windows=(Window(days=(day,), opens="10:00", closes="11:00"),)))


@pytest.mark.parametrize(
    ("live", "version", "change"),
    [
        ("v0.1.0", "v0.1.0", None),
        ("v0.1.0", "v0.1.0-rc.1", None),
        ("v0.1.0", "v0.1.1", "patch"),
        ("v0.1.9", "v0.2.0", "minor"),
        ("v0.9.9", "v1.0.0", "major"),
        ("v2.0.0", "v1.9.9", "major"),
        ("v1.2.3-rc.4", "v1.2.4-rc.9", "patch"),
    ],
)
def test_a_change_is_named_by_the_first_number_that_differs(live: str, version: str, change: Change | None) -> None:
    assert change_between(live, version) == change


@pytest.mark.parametrize("version", ["v0.2.0", "v1.0.0"])
def test_outside_the_windows_a_minor_or_major_version_is_refused_with_the_next_window(
    workspace: Workspace, kept: Callable[..., Manifest], version: str
) -> None:
    with pytest.raises(NotPermittedError, match=r"the next opens \w+day \d{4}-\d\d-\d\d 10:00 UTC"):
        check_permission(platform_of(workspace, closed_now()), kept(version))


def test_an_open_window_permits_a_minor_version_and_a_patch_needs_none(
    workspace: Workspace, kept: Callable[..., Manifest]
) -> None:
    always_open = LocalSettings(delivery=Delivery(windows=(ALWAYS,)))
    assert check_permission(platform_of(workspace, always_open), kept("v0.2.0")) is None
    assert check_permission(platform_of(workspace, closed_now()), kept("v0.1.1")) is None


def test_a_killed_deployment_may_continue_outside_the_windows(
    workspace: Workspace, kept: Callable[..., Manifest]
) -> None:
    manifest, current = kept("v0.2.0"), workspace.rollout.read()
    assert current
    under_way = Deployment(
        id="1", version="v0.2.0", sha256=manifest.sha256, strategy="blue-green", source="blue", target="green",
        weights=(100,), bake_s=1, actor="test", started=0, before=current.green,
    )  # fmt: skip
    workspace.rollout.compare_and_set(current, current.model_copy(update={"deployment": under_way}))
    assert check_permission(platform_of(workspace, closed_now()), manifest) is None
    with pytest.raises(NotPermittedError):
        check_permission(platform_of(workspace, closed_now()), kept("v0.3.0", b"another"))


@pytest.fixture
def approve(workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Approval]:
    """Approve a version as a user, with the key of an approver, who is by default the same person."""

    def as_user(name: str, version: str, *, key: str | None = None, **options: Any) -> Approval:
        file = tmp_path / "key.pem"
        file.write_text(KEYS[key or name])
        with monkeypatch.context() as patch:
            patch.setattr("observatory.operations.release_approvals.user", lambda: name)
            return approve_release(workspace, version, key=file, reason="looks good", **options)

    return as_user


def test_a_version_is_permitted_once_another_person_has_approved_it(
    workspace: Workspace, kept: Callable[..., Manifest], approve: Callable[..., Approval]
) -> None:
    manifest = kept("v1.0.0")
    with pytest.raises(NotPermittedError, match=r"v1\.0\.0 is a major change: it is not approved"):
        check_permission(platform_of(workspace, NEEDS_APPROVAL), manifest)
    approve("alice", "v1.0.0")
    assert check_permission(platform_of(workspace, NEEDS_APPROVAL), manifest) == "alice"
    (entry,) = [entry for entry in entries(workspace.journal) if entry.event == "approved"]
    assert entry.details["by"] == "alice"


@pytest.mark.parametrize(
    ("who", "key"), [(MYSELF, MYSELF), (MYSELF, "alice"), ("alice", MYSELF)], ids=["own", "own user", "own key"]
)
def test_the_person_who_deploys_cannot_approve(
    workspace: Workspace, kept: Callable[..., Manifest], approve: Callable[..., Approval], who: str, key: str
) -> None:
    manifest = kept("v1.0.0")
    approve(who, "v1.0.0", key=key)
    with pytest.raises(NotPermittedError, match="a second person must approve it"):
        check_permission(platform_of(workspace, NEEDS_APPROVAL), manifest)


def test_the_environment_changes_no_identity(monkeypatch: pytest.MonkeyPatch) -> None:
    before = actor()
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.setenv(name, "mallory")
    assert actor() == before


def test_under_sudo_the_identity_is_the_calling_users(monkeypatch: pytest.MonkeyPatch) -> None:
    caller = pwd.getpwnam("daemon")
    monkeypatch.setenv("SUDO_UID", str(caller.pw_uid))
    monkeypatch.setattr("os.getuid", lambda: 0)
    assert user() == "daemon"
    monkeypatch.setattr("os.getuid", lambda: 54321)
    assert user() == "uid-54321", "only root's process is believed"


def test_a_key_that_is_not_trusted_cannot_approve(
    workspace: Workspace, kept: Callable[..., Manifest], approve: Callable[..., Approval]
) -> None:
    manifest = kept("v1.0.0")
    with pytest.raises(ReleaseRefusedError, match=r"not of a trusted approver .*`delivery.trusted_approvers`"):
        approve("mallory", "v1.0.0")
    assert workspace.approvals.read(manifest) is None


FORGERIES: dict[str, Callable[[Approval], Approval]] = {
    "does not count": lambda good: good.model_copy(update={"expires": 1e12}),
    "is not signed": lambda good: good.model_copy(update={"signature": None}),
    "names bob": lambda good: good.model_copy(update={"by": "bob", "signature": None}).signed(KEYS["alice"]),
    "which is not trusted": lambda good: good.signed(KEYS["mallory"]),
    "'staging'": lambda good: good.model_copy(update={"stack": "staging"}).signed(KEYS["alice"]),
    "for v0.9.0": lambda good: good.model_copy(update={"version": "v0.9.0"}).signed(KEYS["alice"]),
    "ended at": lambda good: good.model_copy(update={"expires": 1.0}).signed(KEYS["alice"]),
}


@pytest.mark.parametrize("objection", FORGERIES)
def test_a_changed_replayed_or_expired_approval_permits_nothing(
    workspace: Workspace, kept: Callable[..., Manifest], approve: Callable[..., Approval], objection: str
) -> None:
    manifest = kept("v1.0.0")
    forged = FORGERIES[objection](approve("alice", "v1.0.0"))
    file = workspace.approvals.directory / "v1.0.0.json"
    file.write_text(forged.model_dump_json())
    with pytest.raises(NotPermittedError, match=objection):
        check_permission(platform_of(workspace, NEEDS_APPROVAL), manifest)


def test_the_signature_of_a_release_is_no_approval(
    workspace: Workspace, kept: Callable[..., Manifest], approve: Callable[..., Approval]
) -> None:
    manifest = kept("v1.0.0")
    good = approve("alice", "v1.0.0")
    released = good.model_copy(update={"signature": signatures.sign(good.payload, KEYS["alice"])})
    workspace.approvals.write(released)
    with pytest.raises(NotPermittedError, match="is not valid for this content"):
        check_permission(platform_of(workspace, NEEDS_APPROVAL), manifest)


def test_an_approval_covers_one_artifact_on_one_stack(
    workspace: Workspace, kept: Callable[..., Manifest], approve: Callable[..., Approval]
) -> None:
    first = kept("v0.2.0")
    approve("alice", "v0.2.0")
    assert workspace.approvals.read(first)
    assert Workspace(root=workspace.root, stack="staging").approvals.read(first) is None
    workspace.releases.remove("v0.2.0")
    assert workspace.approvals.read(kept("v0.2.0", b"another")) is None


def test_an_approval_of_an_earlier_version_is_read_and_permits_nothing(
    workspace: Workspace, kept: Callable[..., Manifest]
) -> None:
    manifest = kept("v1.0.0")
    workspace.approvals.directory.mkdir(parents=True)
    recorded = {"version": "v1.0.0", "sha256": manifest.sha256, "by": "alice@host", "at": 1.5, "reason": ""}
    (workspace.approvals.directory / "v1.0.0.json").write_text(json.dumps(recorded))
    with pytest.raises(NotPermittedError, match="the approval of alice@host is not signed"):
        check_permission(platform_of(workspace, NEEDS_APPROVAL), manifest)


def test_a_version_that_is_not_stored_cannot_be_approved(
    workspace: Workspace, approve: Callable[..., Approval]
) -> None:
    with pytest.raises(ReleaseError, match="not in the store"):
        approve("alice", "v9.9.9")
    assert not workspace.approvals.directory.exists()


def test_two_approvers_with_one_key_are_refused() -> None:
    key = signatures.public_key(KEYS["alice"])
    with pytest.raises(ValidationError, match="each person needs one of their own"):
        Delivery(trusted_approvers={"alice": key, "bob": key})
    with pytest.raises(ValidationError, match="use another key for approvals"):
        Delivery(trusted_approvers={"alice": key}, trusted_keys={"ci": key})


def test_a_damaged_approval_is_reported(workspace: Workspace, kept: Callable[..., Manifest]) -> None:
    manifest = kept("v0.2.0")
    workspace.approvals.directory.mkdir(parents=True)
    (workspace.approvals.directory / "v0.2.0.json").write_text("{}")
    with pytest.raises(ReleaseError, match="approve the release again"):
        check_permission(platform_of(workspace, NEEDS_APPROVAL), manifest)
