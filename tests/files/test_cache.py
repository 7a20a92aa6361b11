"""The directory that all checkouts of one user share."""

from __future__ import annotations

import os
import pwd
import time
from pathlib import Path

import pytest

from observatory.files.cache import VARIABLE, CacheError, mark_used, remove_unused, shared_directory, shared_or


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({VARIABLE: "/elsewhere"}, "/elsewhere"),
        ({"XDG_CACHE_HOME": "/xdg", "HOME": "/home/me"}, "/xdg/llm-observatory"),
        ({"HOME": "/home/me"}, "/home/me/.cache/llm-observatory"),
        ({VARIABLE: "~/mine", "HOME": "/home/me"}, "/home/me/mine"),
        ({"HOME": ""}, f"{pwd.getpwuid(os.geteuid()).pw_dir}/.cache/llm-observatory"),
        ({}, f"{pwd.getpwuid(os.geteuid()).pw_dir}/.cache/llm-observatory"),
    ],
)
def test_the_environment_names_the_directory(
    environment: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (VARIABLE, "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert shared_directory() == Path(expected)


def test_the_directory_is_private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path / "new" / "cache"))
    assert shared_or(tmp_path) == (tmp_path / "new" / "cache", "")
    assert (tmp_path / "new" / "cache").stat().st_mode & 0o777 == 0o700


def test_an_account_without_an_entry_shares_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container that runs with a numeric user."""
    for name in (VARIABLE, "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "geteuid", lambda: 4_000_000)
    directory, reason = shared_or(tmp_path / "own")
    assert directory == tmp_path / "own"
    assert reason


def test_a_directory_that_others_may_write_to_has_its_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `mkdir` leaves it with the umask 0002 of many distributions."""
    directory = tmp_path / "my cache"
    directory.mkdir()
    directory.chmod(0o775)
    monkeypatch.setenv(VARIABLE, str(directory))
    with pytest.raises(CacheError, match=r"others may write to it; run: chmod go-w '.*/my cache'"):
        shared_or(tmp_path / "own")
    directory.chmod(0o755)
    assert shared_or(tmp_path / "own") == (directory, "")


@pytest.mark.parametrize("link", [False, True])
def test_a_file_or_a_link_to_nothing_is_not_a_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, link: bool
) -> None:
    cache = tmp_path / "cache"
    cache.symlink_to("gone") if link else cache.touch()
    monkeypatch.setenv(VARIABLE, str(cache))
    with pytest.raises(CacheError, match="cannot be used: it is not a directory"):
        shared_or(tmp_path / "own")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory away")
def test_nothing_is_created_in_the_home_of_another_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `sudo make up` with the home of the user who called it."""
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home" / ".cache"))
    (tmp_path / "home").mkdir()
    os.chown(tmp_path / "home", 4242, 4242)
    directory, reason = shared_or(tmp_path / "own")
    assert directory == tmp_path / "own"
    assert reason.endswith("home belongs to another user")
    assert list((tmp_path / "home").iterdir()) == []


def test_entries_that_no_checkout_uses_are_removed_after_a_month(tmp_path: Path) -> None:
    for name, days in (
        ("thing-new", 0),
        ("thing-old", 31),
        ("thing-recent", 29),
        ("thing-busy", 31),
        ("other-old", 31),
    ):
        (tmp_path / name).mkdir()
        os.utime(tmp_path / name, times=(0, time.time() - days * 24 * 3600))
    remove_unused(tmp_path / "thing-new", "thing-*", in_use=lambda entry: entry.name == "thing-busy")
    assert not (tmp_path / "thing-old").exists()
    mark_used(tmp_path / "thing-busy")
    remove_unused(tmp_path / "thing-new", "thing-*")
    assert {path.name for path in tmp_path.iterdir()} == {"thing-new", "thing-recent", "thing-busy", "other-old"}
