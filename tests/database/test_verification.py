"""Each kind of damage to a real database fails a check that names it, on every installed edition."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.sql import SQL, Identifier

from observatory.database import (
    Check,
    Profile,
    Verification,
    catalogue,
    deploy,
    ensure_database,
    grant_access,
    schedule_jobs,
    verify,
)
from observatory.database.verification_rows import MARK
from tests.database.conftest import SHIPPED
from tests.support.postgres import SETTINGS, PostgresServer, community_server, postgres_server

DATABASE, OWNER, SERVICE, PASSWORD = "observatory", "migrator", "service", "correct horse"
GRANTS = f"""
    CREATE ROLE {SERVICE} LOGIN PASSWORD '{PASSWORD}';
    GRANT CONNECT ON DATABASE {DATABASE} TO {SERVICE};
    GRANT USAGE ON SCHEMA public, observatory TO {SERVICE};
    GRANT SELECT ON ALL TABLES IN SCHEMA public, observatory TO {SERVICE};
    GRANT INSERT ON llm_traces, llm_metrics, llm_logs TO {SERVICE};
    GRANT UPDATE ON llm_traces TO {SERVICE};
    GRANT UPDATE (last_used_at) ON api_keys TO {SERVICE};
"""
COMMUNITY = pytest.param("community", marks=pytest.mark.community)


@dataclass(frozen=True, kw_only=True)
class Migrated:
    """A server with a migrated database, its jobs scheduled, and the service's login."""

    server: PostgresServer
    edition: Literal["apache", "community"]

    @property
    def owner(self) -> str:
        return self.server.conninfo(user=OWNER, dbname=DATABASE)

    @property
    def service(self) -> str:
        return self.server.tcp_conninfo(user=SERVICE, password=PASSWORD, dbname=DATABASE)

    def verify(self, *, service_conninfo: str | None = None) -> Verification:
        return verify(
            self.owner,
            migrations=SHIPPED,
            roles={SERVICE: "service"},
            service_conninfo=service_conninfo or self.service,
        )

    def execute(self, sql: str) -> None:
        with self.server.superuser(DATABASE) as connection:
            for statement in sql.split(";;"):
                connection.execute(statement.encode())

    def rows(self) -> int:
        query = "SELECT (SELECT count(*) FROM llm_traces) + (SELECT count(*) FROM llm_metrics) + count(*) FROM llm_logs"
        with self.server.superuser(DATABASE) as connection:
            return int((connection.execute(query.encode()).fetchone() or (0,))[0])


@pytest.fixture(scope="module", params=["apache", COMMUNITY])
def migrated(request: pytest.FixtureRequest, rootfs: Path) -> Iterator[Migrated]:
    settings = {
        "shared_preload_libraries": SETTINGS["shared_preload_libraries"] + ",pg_cron",
        "cron.database_name": DATABASE,
        "cron.launch_active_jobs": "off",
    }
    start = {"apache": postgres_server, "community": community_server}[request.param]
    manager = start(rootfs, **settings)
    if manager is None:
        pytest.skip("needs TimescaleDB's community edition: OBSERVATORY_PG_PREFIX names no installation")
    with manager as server:
        ensure_database(server.conninfo(), name=DATABASE, owner=OWNER)
        migrated = Migrated(server=server, edition=request.param)
        deploy(migrated.owner, migrations=SHIPPED, actor="tester", deployment_id="test")
        schedule_jobs(migrated.owner)
        migrated.execute(GRANTS)
        yield migrated


def test_an_undamaged_database_passes_and_no_row_remains(migrated: Migrated) -> None:
    verification = migrated.verify()

    assert [str(check) for check in verification.problems] == []
    assert (verification.version, verification.edition, verification.passed) == (8, migrated.edition, True)
    both = {"version", "tables", "columns", "chunk intervals", "aggregates", "indexes", "constraints", "grants"}
    both |= {"reads as the service", "writes as the service", "sequences", "additions"}
    own = {"apache": {"jobs", "views", "routines"}, "community": {"policies", "compression"}}[migrated.edition]
    assert {check.name for check in verification.checks} == both | own
    assert migrated.rows() == 0


INDEX = "CREATE INDEX llm_traces_user_ts ON llm_traces (user_id, ts DESC) WHERE user_id IS NOT NULL"
PRICES = "model_pricing_costs CHECK (least(prompt_cost_per_1k, completion_cost_per_1k) >= 0)"


@pytest.mark.parametrize(
    ("damage", "repair", "name", "detail"),
    [
        (
            "ALTER TABLE projects RENAME TO renamed",
            "ALTER TABLE renamed RENAME TO projects",
            "tables",
            "public.projects is missing",
        ),
        (
            "ALTER TABLE api_keys ALTER rate_limit_rpm TYPE bigint",
            "ALTER TABLE api_keys ALTER rate_limit_rpm TYPE integer",
            "columns",
            "public.api_keys.rate_limit_rpm is bigint not null default 60, expected integer not null default 60",
        ),
        (
            "ALTER TABLE llm_logs ALTER message DROP NOT NULL",
            "ALTER TABLE llm_logs ALTER message SET NOT NULL",
            "columns",
            "public.llm_logs.message is text, expected text not null",
        ),
        (
            "SELECT set_chunk_time_interval('llm_logs', INTERVAL '1 hour')",
            "SELECT set_chunk_time_interval('llm_logs', INTERVAL '1 day')",
            "chunk intervals",
            "public.llm_logs is ts 01:00:00, expected ts 1 day",
        ),
        ("DROP INDEX llm_traces_user_ts", INDEX, "indexes", "public.llm_traces_user_ts is missing"),
        (
            "UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'projects_owner'::regclass",
            "UPDATE pg_index SET indisvalid = true WHERE indexrelid = 'projects_owner'::regclass",
            "indexes",
            "public.projects_owner is CREATE INDEX projects_owner ON public.projects USING btree (owner_id) (invalid)",
        ),
        (
            f"ALTER TABLE model_pricing DROP CONSTRAINT model_pricing_costs, ADD CONSTRAINT {PRICES} NOT VALID",
            "ALTER TABLE model_pricing VALIDATE CONSTRAINT model_pricing_costs",
            "constraints",
            ">= (0)::numeric)) NOT VALID, expected CHECK",
        ),
        (
            "ALTER TABLE projects DROP CONSTRAINT projects_owner_id_fkey",
            "ALTER TABLE projects ADD FOREIGN KEY (owner_id) REFERENCES users ON DELETE RESTRICT",
            "constraints",
            "public.projects.projects_owner_id_fkey is missing",
        ),
        (
            f"REVOKE INSERT ON llm_traces FROM {SERVICE}",
            f"GRANT INSERT ON llm_traces TO {SERVICE}",
            "grants",
            "service on public.llm_traces: SELECT, UPDATE, expected INSERT, SELECT, UPDATE",
        ),
        (
            f"GRANT DELETE ON users TO {SERVICE}",
            f"REVOKE DELETE ON users FROM {SERVICE}",
            "grants",
            "service on public.users: DELETE, SELECT, expected SELECT",
        ),
        (
            f"REVOKE UPDATE (last_used_at) ON api_keys FROM {SERVICE}",
            f"GRANT UPDATE (last_used_at) ON api_keys TO {SERVICE}",
            "grants",
            "service may not update public.api_keys.last_used_at",
        ),
        (
            f"REVOKE SELECT ON llm_metrics_1min FROM {SERVICE}",
            f"GRANT SELECT ON llm_metrics_1min TO {SERVICE}",
            "reads as the service",
            "permission denied for view llm_metrics_1min",
        ),
        (
            "ALTER SEQUENCE model_pricing_id_seq CYCLE",
            "ALTER SEQUENCE model_pricing_id_seq NO CYCLE",
            "sequences",
            "public.model_pricing_id_seq is bigint from 1 by 1, 1 to 9223372036854775807, cycles, of",
        ),
        (
            "ALTER TABLE users DISABLE TRIGGER ALL",
            "ALTER TABLE users ENABLE TRIGGER ALL",
            "additions",
            "trigger public.users.foreign keys and constraints (disabled)",
        ),
        (
            "ALTER TABLE llm_metrics ADD CONSTRAINT odd CHECK (value > 0)",
            "ALTER TABLE llm_metrics DROP CONSTRAINT odd",
            "writes as the service",
            'violates check constraint "odd"',
        ),
        (
            "UPDATE observatory.schema_migrations SET statements_total = statements_total + 1 WHERE version = 8",
            "UPDATE observatory.schema_migrations SET statements_total = statements_total - 1 WHERE version = 8",
            "version",
            "was interrupted. Deploy again",
        ),
    ],
)
def test_damage_is_named(migrated: Migrated, damage: str, repair: str, name: str, detail: str) -> None:
    migrated.execute(damage)
    try:
        verification = migrated.verify()
    finally:
        migrated.execute(repair)

    assert not verification.passed
    (found,) = [check for check in verification.checks if check.name == name]
    assert found.verdict == "failed"
    assert detail in found.detail
    assert migrated.rows() == 0


APACHE = [
    (
        "UPDATE observatory.aggregates SET refresh_from = '2 hours' WHERE name = 'llm_metrics_1min'",
        "UPDATE observatory.aggregates SET refresh_from = '1 hour' WHERE name = 'llm_metrics_1min'",
        "aggregates",
        "from 02:00:00 to 00:01:00 ago, expected buckets of 00:01:00, from 01:00:00",
    ),
    (
        "UPDATE cron.job SET active = false WHERE jobname LIKE '%retention of llm_logs'",
        "UPDATE cron.job SET active = true",
        "jobs",
        "retention of llm_logs is not scheduled",
    ),
    (
        "UPDATE cron.job SET schedule = '0 0 1 1 *' WHERE jobname LIKE '%retention of llm_logs'",
        "UPDATE cron.job SET schedule = '18 * * * *' WHERE jobname LIKE '%retention of llm_logs'",
        "jobs",
        "retention of llm_logs: pg_cron's is 0 0 1 1 * CALL",
    ),
    (
        "ALTER PROCEDURE observatory.drop_old_chunks SECURITY DEFINER",
        "ALTER PROCEDURE observatory.drop_old_chunks SECURITY INVOKER",
        "routines",
        "observatory.drop_old_chunks",
    ),
]
RETENTION = "timescaledb_information.jobs WHERE proc_name = 'policy_retention' AND hypertable_name = 'llm_logs'"
COMMUNITY_ONLY = [
    (
        f"SELECT alter_job(job_id, scheduled => false) FROM {RETENTION}",
        f"SELECT alter_job(job_id, scheduled => true) FROM {RETENTION}",
        "policies",
        "retention of llm_logs is every 1 day",
    ),
    (
        "SELECT remove_compression_policy('llm_logs')",
        "SELECT add_compression_policy('llm_logs', INTERVAL '7 days')",
        "policies",
        "compression of llm_logs is missing",
    ),
    (
        "ALTER MATERIALIZED VIEW llm_metrics_1min SET (timescaledb.materialized_only = false)",
        "ALTER MATERIALIZED VIEW llm_metrics_1min SET (timescaledb.materialized_only = true)",
        "aggregates",
        "with rows that are not materialized yet, expected",
    ),
]


@pytest.mark.parametrize("damage", [*APACHE, *COMMUNITY_ONLY], ids=lambda damage: f"{damage[2]}-{damage[3][:30]}")
def test_damage_to_objects_of_one_edition_is_named(migrated: Migrated, damage: tuple[str, str, str, str]) -> None:
    if (damage in APACHE) is not (migrated.edition == "apache"):
        pytest.skip("of the other edition")
    test_damage_is_named(migrated, *damage)


def test_an_invalid_index_of_one_chunk_is_named(migrated: Migrated) -> None:
    migrated.execute("INSERT INTO llm_logs (ts, log_level, message) VALUES ('2026-01-01', 'INFO', 'x')")
    chunk = "(SELECT show_chunks('llm_logs', older_than => INTERVAL '9 days'))"
    index = f"(SELECT indexrelid FROM pg_index WHERE indrelid = {chunk} LIMIT 1)"
    migrated.execute(f"UPDATE pg_index SET indisvalid = false WHERE indexrelid = {index}")

    verification = migrated.verify()
    migrated.execute("SELECT drop_chunks('llm_logs', older_than => INTERVAL '9 days')")

    (found,) = verification.problems
    assert found.name == "indexes"
    assert "public.llm_logs: index _timescaledb_internal._hyper_3_" in found.detail
    assert found.detail.endswith("_chunk is invalid")


ADDITIONS = """
    ALTER TABLE users ADD CONSTRAINT adults CHECK (length(id) > 0) NOT VALID;;
    CREATE FUNCTION public.keep() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';;
    CREATE TRIGGER kept BEFORE INSERT ON users FOR EACH ROW EXECUTE FUNCTION keep();;
    ALTER TABLE users ENABLE ROW LEVEL SECURITY;;
    CREATE POLICY own_rows ON users USING (true);;
    CREATE RULE ignored AS ON DELETE TO users DO INSTEAD NOTHING;;
    ALTER TABLE users ADD COLUMN phone text, ADD COLUMN needed text NOT NULL;;
    CREATE UNIQUE INDEX users_once ON users (created_at);;
    CREATE INDEX users_phone ON users (phone);;
    CREATE INDEX users_phone_ccnew ON users (phone);;
    UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'users_phone_ccnew'::regclass;;
    CREATE TABLE notes (id serial PRIMARY KEY, owner text REFERENCES users (id), text text CHECK (text <> ''));;
    CREATE INDEX notes_text ON notes (text);;
    CREATE TABLE months (at date) PARTITION BY RANGE (at);;
    CREATE VIEW seen AS SELECT 1 AS one;;
    CREATE SCHEMA elsewhere;;
    CREATE TABLE elsewhere.kept (id int);;
    CREATE TYPE mood AS ENUM ('sad');;
    CREATE FUNCTION public.checked() RETURNS event_trigger LANGUAGE plpgsql AS 'BEGIN END';;
    CREATE EVENT TRIGGER watched ON sql_drop EXECUTE FUNCTION checked();;
    ALTER TABLE projects OWNER TO postgres;;
    ALTER TABLE projects SET (fillfactor = 70);;
    SELECT cron.schedule('tidy', '0 0 1 1 *', 'SELECT 1');;
    CREATE POLICY hidden ON observatory.schema_migrations USING (false)
"""
REMOVALS = """
    DROP EVENT TRIGGER watched;; DROP FUNCTION checked();;
    DROP TABLE notes, months;; DROP VIEW seen;; DROP SCHEMA elsewhere CASCADE;; DROP TYPE mood;;
    DROP TRIGGER kept ON users;; DROP FUNCTION keep();; DROP POLICY own_rows ON users;; DROP RULE ignored ON users;;
    ALTER TABLE users DISABLE ROW LEVEL SECURITY, DROP COLUMN phone, DROP COLUMN needed, DROP CONSTRAINT adults;;
    DROP INDEX users_once;; ALTER TABLE projects OWNER TO migrator;; ALTER TABLE projects RESET (fillfactor);;
    SELECT cron.unschedule('tidy');; DROP POLICY hidden ON observatory.schema_migrations
"""


def test_what_the_migrations_do_not_make_is_listed(migrated: Migrated) -> None:
    """An error where it changes what statements on their tables do, otherwise a warning; with the remedy."""
    migrated.execute(ADDITIONS)
    try:
        verification = migrated.verify()
    finally:
        migrated.execute(REMOVALS)

    assert {each.difference for each in verification.drift} == {"added"}
    found: dict[str, set[tuple[str, str]]] = {"error": set(), "warning": set()}
    for each in verification.drift:
        found[each.severity].add((each.kind, each.name))
    assert found["error"] == {
        ("constraint", "public.users.adults"),
        ("constraint", "public.notes.notes_owner_fkey"),
        ("trigger", "public.users.kept"),
        ("row security", "public.users"),
        ("row security policy", "public.users.own_rows"),
        ("row security policy", "observatory.schema_migrations.hidden"),
        ("rule", "public.users.ignored"),
        ("column", "public.users.needed"),
        ("index", "public.users_once"),
        ("index", "public.users_phone_ccnew"),
        ("event trigger", "watched"),
        ("owner", "public.projects"),
    }
    assert found["warning"] == {
        ("column", "public.users.phone"),
        ("index", "public.users_phone"),
        ("table", "public.notes"),
        ("table", "public.months"),
        ("view", "public.seen"),
        ("schema", "elsewhere"),
        ("table", "elsewhere.kept"),
        ("type", "public.mood"),
        ("routine", "public.keep()"),
        ("routine", "public.checked()"),
        ("storage", "public.projects"),
    }
    assert {each.name: each.remedy for each in verification.drift}["public.users.adults"] == (
        "remove it (ALTER TABLE public.users DROP CONSTRAINT adults), or write a migration that makes it"
    )
    assert "additions" in {check.name for check in verification.problems}
    assert migrated.verify().drift == ()


REMOVED_BY_THEIR_REMEDY = """
    CREATE FUNCTION public."Keep"(a int) RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT 1';;
    CREATE FUNCTION public.number(text) RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT 1';;
    CREATE FUNCTION public.kept() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';;
    CREATE TRIGGER "Kept" BEFORE INSERT ON users FOR EACH ROW EXECUTE FUNCTION kept();;
    CREATE CAST (text AS int) WITH FUNCTION public.number(text) AS IMPLICIT;;
    CREATE OPERATOR === (LEFTARG = int, RIGHTARG = int, FUNCTION = int4eq);;
    CREATE EXTENSION postgres_fdw;; CREATE SERVER far FOREIGN DATA WRAPPER postgres_fdw;;
    CREATE FOREIGN TABLE "Far away" (id int) SERVER far;;
    CREATE SCHEMA "Other";; CREATE DOMAIN "Other"."Short" AS text CHECK (length(VALUE) < 9);;
    CREATE TABLE "Other".kid (name "Other"."Short");; CREATE TABLE grandchild () INHERITS (users);;
    CREATE PUBLICATION changes FOR TABLE users, projects;;
    ALTER TABLE users ADD COLUMN number bigserial, REPLICA IDENTITY FULL, SET (fillfactor = 70)
"""


def test_the_remedies_in_the_order_of_the_list_remove_every_addition(migrated: Migrated) -> None:
    migrated.execute(REMOVED_BY_THEIR_REMEDY)

    drift = migrated.verify().drift
    for each in drift:
        migrated.execute(each.remedy.removeprefix("remove it (").removesuffix("), or write a migration that makes it"))

    severities = {each.kind: each.severity for each in drift}
    assert {kind for kind, severity in severities.items() if severity == "error"} == {
        *("cast", "inheritance", "publication", "trigger")
    }
    assert {"extension", "foreign server", "operator", "replica identity", "routine", "type"} <= severities.keys()
    assert migrated.verify().drift == ()


def test_additions_that_change_nothing_pass_with_a_warning(migrated: Migrated) -> None:
    migrated.execute("CREATE TABLE notes (id int);; ALTER TABLE notes ADD CHECK (id > 0)")
    verification = migrated.verify()
    migrated.execute("DROP TABLE notes")

    assert verification.passed
    [warning] = verification.warnings
    assert (warning.kind, warning.name) == ("table", "public.notes")
    [check] = [check for check in verification.checks if check.name == "additions"]
    assert check.detail.startswith("1 that change nothing: table public.notes")


def test_a_missing_and_an_added_index_of_one_chunk_are_named(migrated: Migrated) -> None:
    migrated.execute("INSERT INTO llm_logs (ts, log_level, message) VALUES ('2026-01-01', 'INFO', 'x')")
    with migrated.server.superuser(DATABASE) as connection:
        old = "SELECT show_chunks('llm_logs', older_than => INTERVAL '9 days')::text"
        [(chunk,)] = connection.execute(old.encode()).fetchall()
        query = "SELECT indexrelid::regclass::text FROM pg_index WHERE indrelid = %s::regclass ORDER BY 1 LIMIT 1"
        [(index,)] = connection.execute(query.encode(), [chunk]).fetchall()
    migrated.execute(f"DROP INDEX {index};; CREATE INDEX by_hand ON {chunk} (message)")

    verification = migrated.verify()
    migrated.execute("SELECT drop_chunks('llm_logs', older_than => INTERVAL '9 days')")

    missing, added = sorted(verification.drift, key=lambda each: each.difference, reverse=True)
    assert missing.name.startswith("public.llm_logs: index public.llm_logs_")
    assert missing.name.endswith(f" of chunk {chunk}")
    assert missing.remedy.startswith(f"create it again: CREATE INDEX ON {chunk} USING btree (")
    assert (added.difference, added.severity, added.name) == ("added", "warning", "_timescaledb_internal.by_hand")
    assert [check.name for check in verification.problems] == ["indexes"]


def test_a_slow_view_is_not_executed(migrated: Migrated) -> None:
    """The Apache edition's views of what is not computed yet read every trace."""
    if migrated.edition != "apache":
        pytest.skip("of the other edition")
    view = "observatory.llm_metrics_1day_live"
    failing = "SELECT 1 AS bucket WHERE 1 / (random() * 0)::integer = 1"
    migrated.execute(
        f"ALTER VIEW {view} RENAME TO hidden;; CREATE VIEW {view} AS {failing};; GRANT SELECT ON {view} TO {SERVICE}"
    )

    verification = migrated.verify()
    migrated.execute(f"DROP VIEW {view};; ALTER VIEW observatory.hidden RENAME TO llm_metrics_1day_live")

    assert {check.name for check in verification.problems} == {"columns", "views", "additions"}  # another owner


def test_a_lower_target_is_compared_with_its_own_version(migrated: Migrated, request: pytest.FixtureRequest) -> None:
    with migrated.server.fresh_database() as name:
        conninfo = migrated.server.conninfo(dbname=name)
        deploy(conninfo, migrations=SHIPPED, target=3, actor="tester", deployment_id="test")

        at_target = verify(conninfo, migrations=SHIPPED, target=3)
        behind = verify(conninfo, migrations=SHIPPED, target=4)
        newest = verify(conninfo, migrations=SHIPPED)

    unknown = {"reads as the service", "writes as the service"}
    assert {check.name for check in at_target.problems} == unknown
    for verification, expected in ((behind, 4), (newest, 8)):
        assert verification.problems[0] == Check(
            name="version", verdict="failed", detail=f"is 3, expected {expected}. Deploy the pending migrations"
        )


def test_a_database_that_other_tools_made_is_no_drift(conninfo: str) -> None:
    with psycopg.connect(conninfo, autocommit=True) as connection:
        connection.execute((SHIPPED / "001_initial_schema.sql").read_bytes())
    found = verify(conninfo, migrations=SHIPPED)

    assert found.drift == ()
    assert [check.name for check in found.problems] == ["version"]
    assert "--baseline N" in found.problems[0].detail


def test_what_flashback_has_still_to_refresh_is_no_drift(migrated: Migrated) -> None:
    with psycopg.connect(migrated.owner, autocommit=True) as connection:
        connection.execute("CREATE TABLE observatory.flashback_refreshes (view_name text NOT NULL)")
        try:
            assert migrated.verify().drift == ()
        finally:
            connection.execute("DROP TABLE observatory.flashback_refreshes")


def test_a_check_that_cannot_run_is_unknown_and_does_not_pass(migrated: Migrated) -> None:
    without_login = verify(migrated.owner, migrations=SHIPPED)
    empty = catalogue.Catalogue(edition=migrated.edition, steps=())
    stale = verify(migrated.owner, migrations=SHIPPED, service_conninfo=migrated.service, catalogue=lambda _: empty)

    assert not without_login.passed
    assert [(check.name, check.verdict) for check in without_login.problems] == [
        ("reads as the service", "unknown"),
        ("writes as the service", "unknown"),
    ]
    assert [(check.name, check.verdict) for check in stale.problems] == [("objects", "unknown")]
    assert "001_initial_schema.sql, 002_add_hypertables.sql" in stale.problems[0].detail
    assert "no PostgreSQL for a rehearsal is installed on this machine" in stale.problems[0].detail


def test_a_failed_login_of_the_service_is_reported_without_its_password(migrated: Migrated) -> None:
    wrong = migrated.server.tcp_conninfo(user=SERVICE, password="wrong horse", dbname=DATABASE)

    verification = migrated.verify(service_conninfo=wrong)

    assert [check.name for check in verification.problems] == ["reads as the service", "writes as the service"]
    assert "password authentication failed" in verification.problems[0].detail
    assert "horse" not in str(verification)


def test_a_missing_role_is_named(migrated: Migrated) -> None:
    verification = verify(
        migrated.owner, migrations=SHIPPED, roles={"without_login": "service"}, service_conninfo=migrated.service
    )

    assert verification.problems == (Check(name="grants", verdict="failed", detail="there is no role without_login"),)


def test_excess_privileges_of_readers_and_administrators_are_named(migrated: Migrated) -> None:
    roles: dict[str, Profile] = {SERVICE: "service", "analyst": "reader", "operator": "administrator"}
    migrated.execute("CREATE ROLE analyst;; CREATE ROLE operator")
    grant_access(migrated.owner, roles={"analyst": "reader", "operator": "administrator"})

    granted = verify(migrated.owner, migrations=SHIPPED, roles=roles, service_conninfo=migrated.service)
    migrated.execute("GRANT SELECT ON api_keys TO analyst;; GRANT TRUNCATE ON users TO operator")
    more = verify(migrated.owner, migrations=SHIPPED, roles=roles, service_conninfo=migrated.service)
    for role in ("analyst", "operator"):
        migrated.execute(f"DROP OWNED BY {role};; DROP ROLE {role}")

    assert granted.passed
    (found,) = more.problems
    assert found.detail == (
        "analyst on public.api_keys: SELECT, expected nothing; "
        "operator on public.users: DELETE, INSERT, SELECT, TRUNCATE, "
        "UPDATE, expected DELETE, INSERT, SELECT, UPDATE"
    )


KILLED = """
import os, signal, sys
import observatory.database.verification_rows as smoke
from pathlib import Path
from observatory.database import verify

class Dying(tuple):
    def __iter__(self):
        os.kill(os.getpid(), signal.SIGKILL)

smoke._REMOVE = Dying()
verify(sys.argv[1], migrations=Path(sys.argv[2]), service_conninfo=sys.argv[3])
"""


def test_the_next_run_removes_rows_of_a_killed_run_which_have_no_price(migrated: Migrated) -> None:
    command = [sys.executable, "-c", KILLED, migrated.owner, str(SHIPPED), migrated.service]
    killed = subprocess.run(command, check=False)

    assert killed.returncode == -signal.SIGKILL
    assert migrated.rows() == 3
    with migrated.server.superuser(DATABASE) as connection:
        assert connection.execute("SELECT provider, model, total_cost_usd, user_id FROM llm_traces").fetchall() == [
            (MARK, MARK, None, None)
        ]
        # Another run may be in progress, so only rows older than any run are removed.
        migrated.verify()
        assert migrated.rows() == 3
        for table in ("llm_traces", "llm_metrics", "llm_logs"):
            # Not by one UPDATE, which cannot move a row to yesterday's chunk.
            connection.execute(f"CREATE TEMPORARY TABLE aged AS SELECT * FROM {table}".encode())
            connection.execute("UPDATE aged SET ts = ts - INTERVAL '11 minutes'")
            connection.execute(f"DELETE FROM {table}".encode())
            connection.execute(f"INSERT INTO {table} SELECT * FROM aged".encode())
            connection.execute("DROP TABLE aged")
    assert migrated.verify().passed
    assert migrated.rows() == 0


def test_settings_of_the_database_and_the_name_of_its_owner_are_no_drift(
    postgres: PostgresServer, conninfo: str
) -> None:
    owner = f"Deploy-Bot {conninfo_to_dict(conninfo)['dbname']}"
    with psycopg.connect(conninfo, autocommit=True) as admin:
        admin.execute(SQL("CREATE ROLE {} SUPERUSER LOGIN").format(Identifier(owner)))
        for setting in (
            "datestyle = German",
            "quote_all_identifiers = on",
            "statement_timeout = 1",
            "search_path = no",
        ):
            admin.execute(SQL("ALTER ROLE {} SET ").format(Identifier(owner)) + SQL(setting))
    conninfo = make_conninfo(conninfo, user=owner)
    try:
        deploy(conninfo, migrations=SHIPPED, actor="tester", deployment_id="test")
        verification = verify(conninfo, migrations=SHIPPED, service_conninfo=None)
    finally:
        with postgres.superuser() as admin:
            postgres.drop_database(str(conninfo_to_dict(conninfo)["dbname"]))
            admin.execute(SQL("DROP ROLE {}").format(Identifier(owner)))

    assert verification.drift == ()
