"""The file with the keys of a lost machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from observatory.backups.machine_keys import KeyFileError, MachineKeys, read_keys, write_keys
from observatory.nodes import Paths
from observatory.nodes.pgbackrest import cipher_file, cipher_section, outside_repository
from observatory.operations.lost_machine import keep_keys
from observatory.runtime import mounts
from observatory.security.age_files import encrypt_with_passphrase
from observatory.workspace import Workspace
from tests.support.checkout import SOURCE

KEYS = MachineKeys(
    stack="project/local", repositories={1: "one", 2: "two"}, dump_key="AGE-SECRET-KEY", signing_key=None
)
PASSPHRASE = "correct horse battery"


def test_only_the_passphrase_opens_the_keys(tmp_path: Path) -> None:
    file = tmp_path / "keys.age"
    write_keys(file, KEYS, PASSPHRASE)
    assert file.stat().st_mode & 0o777 == 0o600
    assert b"AGE-SECRET-KEY" not in file.read_bytes()
    assert read_keys(file, PASSPHRASE) == KEYS
    with pytest.raises(KeyFileError, match=r"keys.age cannot be decrypted.*\n.*another key or passphrase"):
        read_keys(file, "another passphrase")
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(KeyFileError, match="cannot be decrypted"):
        read_keys(file, PASSPHRASE)


def test_an_export_overwrites_nothing_and_needs_a_long_passphrase(tmp_path: Path) -> None:
    file = tmp_path / "keys.age"
    with pytest.raises(KeyFileError, match="has 11 characters, and needs at least 12"):
        write_keys(file, KEYS, "p" * 11)
    file.write_text("mine")
    with pytest.raises(KeyFileError, match="exists, and an export overwrites nothing"):
        write_keys(file, KEYS, PASSPHRASE)
    assert file.read_text() == "mine"
    with pytest.raises(KeyFileError, match="cannot be written"):
        write_keys(tmp_path / "no/keys.age", KEYS, PASSPHRASE)
    assert [each.name for each in tmp_path.iterdir()] == ["keys.age"]


def test_what_is_no_key_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "keys.age"
    with pytest.raises(KeyFileError, match="cannot be read: No such file"):
        read_keys(file, PASSPHRASE)
    file.write_text("no key file")
    with pytest.raises(KeyFileError, match="is not encrypted with age"):
        read_keys(file, PASSPHRASE)
    file.write_bytes(encrypt_with_passphrase(b'{"format": 2}', PASSPHRASE))
    with pytest.raises(KeyFileError, match="has no keys that this version can read"):
        read_keys(file, PASSPHRASE)


def test_the_keys_of_a_repository_outside_of_the_home_outlive_the_stack(tmp_path: Path) -> None:
    (tmp_path / "Pulumi.yaml").write_text((SOURCE / "Pulumi.yaml").read_text())
    workspace = Workspace(root=tmp_path, stack="local")
    sandbox = workspace.sandbox
    assert keep_keys(workspace) is None
    sandbox.write_file(cipher_file(Paths(), 2), cipher_section("two", 2))
    assert keep_keys(workspace) is None  # `down` removes the repository with the home
    sandbox.write_file(mounts.RECORD, mounts.record({outside_repository(2): tmp_path / "disk"}))
    file = keep_keys(workspace)
    assert file
    assert keep_keys(workspace) == file  # of the same stack, as after an interrupted `down`
    assert file.stat().st_mode & 0o777 == 0o600
    assert not file.is_relative_to(workspace.home)
    assert read_keys(file, "").repositories == {2: "two"}
