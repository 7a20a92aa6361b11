"""A declared certificate without its file is named, and is not taken for one that needs no renewal."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from observatory import operations
from observatory.engines import embedded
from observatory.operations.certificates import CertificateMissingError, missing_certificates
from observatory.security.certificates import issue, make_authority
from observatory.workspace import Workspace

TYPE = "pulumi-python:dynamic/local:Certificate"


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """A stack whose state has two certificates, with all files."""
    (tmp_path / "Pulumi.yaml").write_text("name: llm-observatory\nruntime: python\n")
    (tmp_path / "Pulumi.local.yaml").write_text("config: {}\n")
    declared = [SimpleNamespace(name=name, type=TYPE) for name in ("balancer", "etcd")]
    monkeypatch.setattr(embedded, "resources", lambda _: declared)
    workspace = Workspace(root=tmp_path, stack="local")
    directory = workspace.home / "etc/tls"
    directory.mkdir(parents=True)
    authority = make_authority("test")
    (directory / "ca.crt").write_text(authority.certificate)
    for name in ("balancer.pem", "etcd.crt"):
        (directory / name).write_text(issue(authority, name=name, hosts=["127.0.0.1"]).combined)
    return workspace


def test_with_all_files_nothing_is_missing(workspace: Workspace) -> None:
    assert missing_certificates(workspace) == []
    assert operations.renew_certificates(workspace).renewed == ()


@pytest.mark.parametrize(("file", "name"), [("ca.crt", "ca"), ("balancer.pem", "balancer"), ("etcd.crt", "etcd")])
def test_a_missing_file_is_named(workspace: Workspace, file: str, name: str) -> None:
    (workspace.home / "etc/tls" / file).unlink()
    assert missing_certificates(workspace) == [name]
    with pytest.raises(CertificateMissingError, match=rf"^certificates are missing: {name}\nRun `observatory up`"):
        operations.renew_certificates(workspace)
