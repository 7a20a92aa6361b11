"""A machine is lost with one backup repository: an empty checkout recovers it from a copy of the other."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import httpx

from observatory.database.connection import connect, with_database
from tests.support.checkout import Checkout
from tests.support.waiting import until

PASSPHRASE = "correct horse battery staple"
CONTENT = """
    SELECT (SELECT md5(string_agg(t::text, '' ORDER BY t)) FROM llm_traces AS t),
        (SELECT json_agg(m ORDER BY version) FROM observatory.schema_migrations AS m),
        (SELECT rolpassword FROM pg_authid WHERE rolname = 'analyst')
"""
OWN_ROLE = "CREATE ROLE analyst LOGIN PASSWORD 'their own'; GRANT SELECT ON llm_traces TO analyst"


def query(stack: Checkout, statement: str) -> list[tuple[object, ...]]:
    admin = str(stack.json("outputs")["admin_database_url"])
    with connect(with_database(admin, "observatory"), purpose="test") as connection:
        cursor = connection.execute(statement.encode())
        return cursor.fetchall() if cursor.description else []


def refuse_what_does_not_fit(checkout: Checkout, restore: tuple[str, ...], tmp_path: Path) -> None:
    """Another passphrase and a directory that is no repository: refused, and there is still no stack."""
    (tmp_path / "wrong").write_text("another passphrase")
    refused = checkout.run(*restore[:-1], str(tmp_path / "wrong"), expect=3)
    assert "keys.age cannot be decrypted" in refused.stderr
    (tmp_path / "foreign").mkdir()
    refused = checkout.run(*restore[:2], str(tmp_path / "foreign"), *restore[3:], expect=3)
    assert "is no backup repository" in refused.stderr
    assert not list(checkout.home.parent.glob("*"))
    assert not (checkout.root / ".observatory/rollout").exists()


def test_a_lost_machine_is_recovered_from_one_repository(stack: Checkout, checkout: Checkout, tmp_path: Path) -> None:
    keys, passphrase, copy = tmp_path / "keys.age", tmp_path / "passphrase", tmp_path / "copy"
    passphrase.write_text(f"{PASSPHRASE}\n")
    export = ("backup", "key", "export", str(keys), "--passphrase-file", str(passphrase))
    stack.run(*export)
    assert keys.stat().st_mode & 0o777 == 0o600
    assert "exists, and an export overwrites nothing" in stack.run(*export, expect=3).stderr
    query(stack, OWN_ROLE)
    try:
        lost = query(stack, CONTENT)
        stack.json("backup", "create")  # archives all WAL until then
        shutil.copytree(stack.home / "data/backups", copy, symlinks=True)
    finally:
        query(stack, "DROP OWNED BY analyst; DROP ROLE analyst")

    restore = ("bootstrap", "--restore-from", str(copy), "--key-file", str(keys), "--passphrase-file", str(passphrase))
    refuse_what_does_not_fit(checkout, restore, tmp_path)
    killed = checkout.start(*restore)
    until(lambda: list(checkout.home.parent.glob(".*/data/postgres")), "the recovery to have begun", timeout_s=300)
    killed.kill()
    killed.communicate()
    assert not checkout.home.exists()
    recovered = checkout.json(*restore)["recovered"]
    assert max(recovered["migrations"]) > 0
    assert [each.name for each in checkout.home.parent.iterdir()] == ["local"]  # nothing of the killed one
    place = tmp_path / "disk"
    place.mkdir()
    checkout.configure(backups={"repositories": [{}, {"path": str(place)}]})
    checkout.run("up", "--engine", "embedded")
    assert query(checkout, CONTENT) == lost
    headers = {"Authorization": f"Bearer {stack.output('api_key')}"}  # a client of the lost machine
    url = f"{checkout.output('service_url')}/v1/traces"
    assert httpx.get(url, headers=headers, verify=checkout.trusted()).status_code == httpx.codes.OK
    checkout.verify("--comprehensive")
    assert "a recovery replaces none" in checkout.run(*restore, expect=3).stderr
    made = checkout.json("backup", "list", "--repository", "2")
    assert sorted(place.glob("backup/observatory/*F/")) == [place / f"backup/observatory/{made[0]['label']}"]
    recover_from_lost_files(checkout, place, tmp_path, passphrase)


def lose_files(checkout: Checkout) -> None:
    """PostgreSQL ends, and cannot start again."""
    data = checkout.home / "data/postgres"
    (data / "global/pg_control").unlink()
    os.kill(int((data / "postmaster.pid").read_text().split()[0]), signal.SIGKILL)


def recover_from_lost_files(checkout: Checkout, outside: Path, tmp_path: Path, passphrase: Path) -> None:
    """The way of docs/backups.md, "A database that does not start", from a repository in the home and from another."""
    lose_files(checkout)
    refused = checkout.run("rollback", "--method", "database", "--to-time", "2026-01-01T00:00Z", "--yes", expect=1)
    assert '"A database that does not start" in docs/backups.md' in refused.stderr

    keys, copy = tmp_path / "later-keys.age", tmp_path / "later-copy"
    checkout.run("backup", "key", "export", str(keys), "--passphrase-file", str(passphrase))
    checkout.run("down", "--keep-data")
    (checkout.home / "data/backups").rename(copy)  # as without room for a copy
    checkout.run("down", "--yes")
    restore = ("bootstrap", "--restore-from", str(copy), "--key-file", str(keys), "--passphrase-file", str(passphrase))
    assert checkout.json(*restore)["recovered"]
    checkout.run("down", "--yes")

    assert sorted(outside.glob("backup/observatory/*F/"))  # `down` has kept it, with keys that open it
    (kept,) = checkout.root.glob(".observatory/kept-keys/*.json")
    assert checkout.json("bootstrap", "--restore-from", str(outside), "--key-file", str(kept))["recovered"]
