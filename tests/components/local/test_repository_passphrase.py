"""The passphrase of the backup repository lives as long as the repository, whatever happens to the Pulumi state."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from components.local.backups import RepositoryPassphraseProvider
from observatory.backups.tool import RepositoryUnreadableError
from observatory.nodes import Paths
from observatory.nodes.pgbackrest import cipher_file, cipher_section, repository
from observatory.runtime import Sandbox

INFORMATION = f"{repository(Paths())}/backup/observatory/backup.info"


@pytest.fixture
def sandbox(tmp_path: Path, rootfs: Path) -> Sandbox:
    return Sandbox(tmp_path / "home", rootfs)


def create(sandbox: Sandbox) -> str:
    props: dict[str, Any] = {"home": str(sandbox.home), "rootfs": str(sandbox.rootfs), "value": None}
    outputs = RepositoryPassphraseProvider().create(props).outs
    assert outputs is not None
    return str(outputs["value"])


def test_each_new_repository_has_a_passphrase_of_its_own(sandbox: Sandbox) -> None:
    first = create(sandbox)
    sandbox.write_file(cipher_file(Paths()), cipher_section(first))
    assert create(sandbox) != first
    assert len(first) == 32


def test_the_passphrase_of_an_existing_repository_is_adopted(sandbox: Sandbox) -> None:
    """As after `pulumi destroy`, or with a new state over the same files."""
    first = create(sandbox)
    sandbox.write_file(cipher_file(Paths()), cipher_section(first))
    sandbox.write_file(INFORMATION, "encrypted")
    assert create(sandbox) == first


def test_a_repository_whose_passphrase_is_gone_is_named_with_the_way_out(sandbox: Sandbox) -> None:
    sandbox.write_file(INFORMATION, "encrypted")
    with pytest.raises(RepositoryUnreadableError, match=r"passphrase is gone") as error:
        create(sandbox)
    assert f"move {sandbox.host_path(repository(Paths()))} away and run `observatory up`" in error.value.remedy
