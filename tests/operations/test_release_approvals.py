"""Minor and major versions need an open window and another person's approval; patches and continuations do not."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from observatory.delivery.approvals import Change, NotPermittedError, change_between
from observatory.delivery.releases import Manifest, ReleaseError
from observatory.documents.rollout import Deployment, RolloutDocument
from observatory.operations.release_approvals import approve_release, check_permission
from observatory.platforms import platform_of
from observatory.platforms.signing import sign
from observatory.security.actor import actor
from observatory.settings import Delivery, LocalSettings
from observatory.settings.windows import WEEKDAYS, Window
from observatory.workspace import Workspace

ALWAYS = Window(days=WEEKDAYS, opens="00:00", closes="00:00")
NEEDS_APPROVAL = LocalSettings(delivery=Delivery(approval=("minor", "major")))


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    found = Workspace(root=tmp_path, stack="local")
    found.config_file.write_text("config: {}\n")
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


def test_a_version_is_permitted_once_another_person_has_approved_it(
    workspace: Workspace, kept: Callable[..., Manifest], monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = kept("v1.0.0")
    with pytest.raises(NotPermittedError, match=r"v1\.0\.0 is a major change: it is not approved"):
        check_permission(platform_of(workspace, NEEDS_APPROVAL), manifest)
    approve_release(workspace, "v1.0.0", reason="mine")
    with pytest.raises(NotPermittedError, match="a second person must approve it"):
        check_permission(platform_of(workspace, NEEDS_APPROVAL), manifest)
    monkeypatch.setenv("LOGNAME", "reviewer")
    approve_release(workspace, "v1.0.0", reason="looks good")
    monkeypatch.undo()
    assert str(check_permission(platform_of(workspace, NEEDS_APPROVAL), manifest)).startswith("reviewer@")


def test_a_pipeline_cannot_approve_its_own_deployment(workspace: Workspace, kept: Callable[..., Manifest]) -> None:
    manifest, myself = kept("v0.2.0"), actor().partition("@")[0]
    assert check_permission(platform_of(workspace, NEEDS_APPROVAL), manifest, approved_by="alice") == "alice"
    with pytest.raises(NotPermittedError, match="a second person must approve it"):
        check_permission(platform_of(workspace, NEEDS_APPROVAL), manifest, approved_by=myself.upper())


def test_an_approval_covers_one_artifact_on_one_stack(
    workspace: Workspace, kept: Callable[..., Manifest], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOGNAME", "reviewer")
    first = kept("v0.2.0")
    approve_release(workspace, "v0.2.0", reason="")
    assert workspace.approvals.read(first)
    assert Workspace(root=workspace.root, stack="staging").approvals.read(first) is None
    workspace.releases.remove("v0.2.0")
    assert workspace.approvals.read(kept("v0.2.0", b"another")) is None


def test_a_version_that_is_not_stored_cannot_be_approved(workspace: Workspace) -> None:
    with pytest.raises(ReleaseError, match="not in the store"):
        approve_release(workspace, "v9.9.9", reason="")


def test_a_damaged_approval_is_reported(workspace: Workspace, kept: Callable[..., Manifest]) -> None:
    manifest = kept("v0.2.0")
    workspace.approvals.directory.mkdir(parents=True)
    (workspace.approvals.directory / "v0.2.0.json").write_text("{}")
    with pytest.raises(ReleaseError, match="approve the release again"):
        check_permission(platform_of(workspace, NEEDS_APPROVAL), manifest)
