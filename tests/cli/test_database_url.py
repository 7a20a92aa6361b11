"""`deploy database --database-url`: a checkout without stack files migrates any database, and lists what it did."""

import json
import shutil
from pathlib import Path

import pytest

from observatory.database import StatementFailedError
from observatory.operations import SecretInUrlError, url_database
from tests.support.checkout import Checkout
from tests.support.postgres import PostgresServer

PASSWORD = "correct horse"
FILES = {
    "001_first.sql": "CREATE TABLE first (id int PRIMARY KEY);",
    "002_second.sql": "CREATE TABLE second (id int PRIMARY KEY);",
}


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    """A checkout with two migrations, without a stack file and without a root filesystem."""
    checkout = Checkout.copy(tmp_path_factory.mktemp("checkout"), rootfs=None)
    for file in checkout.root.glob("Pulumi.*"):
        file.unlink()
    shutil.rmtree(checkout.root / "migrations")
    (checkout.root / "migrations").mkdir()
    for name, sql in FILES.items():
        (checkout.root / "migrations" / name).write_text(sql)
    return checkout


def test_a_database_without_a_stack_is_planned_migrated_and_listed(
    checkout: Checkout, postgres: PostgresServer, tmp_path: Path
) -> None:
    with postgres.fresh_database() as name, postgres.superuser(name) as admin:
        admin.execute(f"CREATE ROLE remote LOGIN PASSWORD '{PASSWORD}'")
        admin.execute(f'GRANT ALL ON DATABASE "{name}" TO remote; GRANT ALL ON SCHEMA public TO remote')
        passfile = tmp_path / "passfile"
        passfile.write_text(f"{postgres.host}:{postgres.port}:{name}:remote:{PASSWORD}\n")
        passfile.chmod(0o600)
        url = f"postgresql://remote@{postgres.host}:{postgres.port}/{name}"

        def run(*arguments: str, expect: int = 0) -> str:
            done = checkout.run(
                "deploy", "database", "--database-url", url, *arguments, expect=expect, PGPASSFILE=str(passfile)
            )
            return " ".join(done.stdout.split())

        try:
            plan = json.loads(run("--dry-run", "--output", "json"))
            deployed = run(expect=1)  # the committed catalogue is not of these files
            listed = json.loads(run("--info", "--output", "json"))
            verified = run("--verify-only", expect=1)
            again = run(expect=1)
            text = run("--info")
            bad = checkout.root / "migrations" / "500_bad.sql"
            bad.write_text("TRUNCATE observatory.schema_migrations;")
            refused = run("--dry-run", expect=3)
            run(expect=3)
            bad.unlink()
        finally:
            admin.execute("DROP OWNED BY remote CASCADE; DROP ROLE remote")

    assert "Refused: 500_bad.sql:1:1: error: observatory.schema_migrations is the record" in refused
    assert [each["file"] for each in plan["pending"]] == list(FILES)
    assert (plan["rehearsal"], plan["backup"]) == ("not rehearsed", None)
    assert (
        "Applied 001_first, 002_second. The schema is at version 2; no backup: the database has no stack." in deployed
    )
    assert (listed["version"], listed["problem"]) == (2, None)
    assert [(each["file"], each["state"], each["backup_label"]) for each in listed["migrations"]] == [
        (file, "applied", None) for file in FILES
    ]
    assert all(each["applied_at"] and "@" in each["applied_by"] for each in listed["migrations"])
    assert "objects unknown 001_first.sql, 002_second.sql" in verified
    assert "writes as the service" not in verified  # these migrations make no table of the product
    assert "No pending migrations." in again
    assert "2 002_second.sql applied" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--database-url", f"postgresql://u:{PASSWORD.replace(' ', '%20')}@h/d"], "~/.pgpass"),
        (["--database-url", "dbname=d", "--backup-only"], "--backup-only does not go with --database-url"),
        (["--database-url", "dbname=d", "--edition", "community"], "--edition does not go with --database-url"),
        (["--database-url", "dbname=d", "-e", "local"], "--database-url has no stack; remove --environment"),
        (["--info", "--migration", "001_first.sql"], "--info does not go with --migration"),
        (["--database-url", ""], "The URL of the database is empty"),
        (["--database-url", "mysql://u@h/d"], "with special characters percent-encoded"),
        (["--dry-run", "--verify-only"], "--verify-only does not go with --dry-run"),
    ],
)
def test_options_without_effect_and_secrets_are_refused(checkout: Checkout, arguments: list[str], message: str) -> None:
    done = checkout.run("deploy", "database", *arguments, expect=2)

    assert message in " ".join(done.stderr.replace("│", " ").split())
    assert "horse" not in done.stderr + done.stdout


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://u:secret@h/d",
        "postgresql://u@h/d?password=secret",
        "host=h dbname=d password='secret'",
        "host=h sslkey=key sslpassword=secret",
    ],
)
def test_no_url_may_contain_a_password(url: str) -> None:
    with pytest.raises(SecretInUrlError) as refused:
        url_database(url)

    assert refused.value.exit_code == 2
    assert "PGPASSFILE" in str(refused.value)
    assert "secret" not in str(refused.value)


def test_a_role_that_may_not_read_the_ledger_gets_an_error(postgres: PostgresServer) -> None:
    with postgres.fresh_database() as name, postgres.superuser(name) as admin:
        admin.execute(
            "CREATE SCHEMA observatory; CREATE TABLE observatory.schema_migrations (); CREATE ROLE stranger LOGIN"
        )
        place = url_database(postgres.conninfo(user="stranger", dbname=name))
        try:
            with pytest.raises(StatementFailedError, match="permission denied"), place.locked("test"):
                pass
        finally:
            admin.execute("DROP ROLE stranger")
