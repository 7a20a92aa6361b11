"""A dump whose key the checkout lacks is refused with the place of the key, and no key is made for it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from observatory.backups.dump_manifest import DumpRefusedError
from observatory.operations.database_rollback_sources import check_dump
from observatory.security.age_files import EncryptedFileError, encrypting, make_key


def test_a_dump_without_its_key_is_refused_with_the_place_of_the_key(tmp_path: Path) -> None:
    dump, key = tmp_path / "other.dump", tmp_path / "checkout/dump-key.txt"
    with dump.open("wb") as file, encrypting(file, make_key()) as content:
        content.write(b"of another checkout")
    platform: Any = SimpleNamespace(workspace=SimpleNamespace(directory=key.parent))
    with pytest.raises(DumpRefusedError, match=f"{key} does not exist") as absent:
        check_dump(platform, dump)
    assert f"to {key}" in absent.value.remedy
    assert not key.exists()
    key.parent.mkdir()
    key.write_text(make_key())
    with pytest.raises(EncryptedFileError, match=r"other\.dump cannot be decrypted") as another:
        check_dump(platform, dump)
    assert f"The key is {key}" in another.value.remedy
