"""A statement that takes from a release what it may need is refused without the header; the rest is not."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from observatory.database import read_migrations
from observatory.database.lint import Finding, lint_all
from tests.database.conftest import SHIPPED, WriteMigrations

OLD = """
CREATE TABLE t (id bigint PRIMARY KEY, email varchar(50) UNIQUE, n integer DEFAULT 1, price numeric(12, 8),
    CONSTRAINT t_n CHECK (n > 0));
CREATE INDEX t_plain ON t (n);
CREATE UNIQUE INDEX t_unique ON t (email, n);
CREATE VIEW v AS SELECT id, email, n AS number FROM t;
CREATE SEQUENCE s;
CREATE TYPE kind AS ENUM ('a', 'b');
CREATE TYPE pair AS (a int, b int);
CREATE DOMAIN positive AS int;
CREATE SCHEMA own;
CREATE FUNCTION f(x int) RETURNS int LANGUAGE sql AS 'SELECT 1';
CREATE FUNCTION fire() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';
CREATE TRIGGER fired BEFORE INSERT ON t EXECUTE FUNCTION fire();
CREATE POLICY p ON t;
"""

CONTRACTING = [
    "DROP TABLE t",
    "DROP TABLE IF EXISTS public.t CASCADE",
    'DROP TABLE "t"',
    "DROP TABLE other, t",
    "DROP VIEW v",
    "DROP SEQUENCE s",
    "DROP INDEX t_unique",
    "DROP INDEX by_hand",
    "DROP FUNCTION f(int)",
    "DROP FUNCTION f",
    "DROP TYPE kind",
    "DROP DOMAIN positive",
    "DROP SCHEMA own",
    "DROP TRIGGER fired ON t",
    "DROP POLICY p ON t",
    "DROP EXTENSION timescaledb",
    "ALTER TABLE t DROP COLUMN n",
    "ALTER TABLE t DROP IF EXISTS n CASCADE",
    'ALTER TABLE ONLY "public"."t" DROP "n"',
    "ALTER TABLE t ADD COLUMN x int, ADD COLUMN y int, DROP COLUMN n",
    "ALTER TABLE t ADD COLUMN x int NOT NULL",
    "ALTER TABLE t ADD COLUMN x int PRIMARY KEY",
    "ALTER TABLE t ALTER n SET NOT NULL",
    "ALTER TABLE t ALTER n DROP DEFAULT",
    "ALTER TABLE t ALTER n TYPE bigint",
    "ALTER TABLE t ALTER n TYPE integer USING 1",
    "ALTER TABLE t ALTER email TYPE varchar(20)",
    "ALTER TABLE t ALTER price TYPE numeric(12, 2)",
    "ALTER TABLE t DROP CONSTRAINT t_email_key",
    "ALTER TABLE t DROP CONSTRAINT t_pkey",
    "ALTER TABLE t DROP CONSTRAINT by_hand",
    "ALTER TABLE t RENAME COLUMN n TO m",
    "ALTER TABLE t RENAME TO u",
    "ALTER TABLE t RENAME CONSTRAINT t_n TO u_n",
    "ALTER VIEW v RENAME TO w",
    "ALTER VIEW v RENAME COLUMN number TO n",
    "ALTER INDEX t_unique RENAME TO u",
    "ALTER FUNCTION f(int) RENAME TO g",
    "ALTER TYPE kind RENAME TO sort",
    "ALTER TYPE kind RENAME VALUE 'a' TO 'c'",
    "ALTER TYPE pair DROP ATTRIBUTE a",
    "ALTER TYPE pair RENAME ATTRIBUTE a TO c",
    "ALTER SCHEMA own RENAME TO other",
    "ALTER DOMAIN positive SET NOT NULL",
    "ALTER TABLE t SET SCHEMA own",
    "ALTER FUNCTION f(int) SET SCHEMA own",
    "ALTER TABLE t OWNER TO app",
    "ALTER TABLE t ENABLE ROW LEVEL SECURITY",
    "ALTER TABLE t DISABLE TRIGGER fired",
    "REVOKE SELECT ON t FROM app",
    "REVOKE ALL ON ALL TABLES IN SCHEMA public FROM readonly",
    "REVOKE USAGE ON SCHEMA public FROM app",
    "ALTER DEFAULT PRIVILEGES REVOKE SELECT ON TABLES FROM app",
    "CREATE OR REPLACE VIEW v AS SELECT id, email FROM t",
    "CREATE OR REPLACE VIEW v AS SELECT id, n AS email, n AS number2 FROM t",
    "CREATE TABLE IF NOT EXISTS t (id int); DROP TABLE t",
    "CREATE TEMP TABLE t (id int); DROP TABLE t; DROP TABLE t",
    "SET search_path = own; DROP TABLE by_hand",
    "ALTER TABLE t ADD COLUMN IF NOT EXISTS n int; ALTER TABLE t DROP COLUMN n",
    "CREATE FUNCTION bad() RETURNS void LANGUAGE sql AS 'DROP TABLE t'; SELECT bad()",
    "CREATE FUNCTION bad() RETURNS void LANGUAGE sql BEGIN ATOMIC SELECT 1; END; DROP TABLE t",
    "CREATE PROCEDURE bad() LANGUAGE plpgsql AS 'BEGIN DROP TABLE t; END'; DO $$ BEGIN CALL bad(); END $$",
    "DO 'BEGIN DROP TABLE t; END'",
]
EXPANDING = [
    "DROP INDEX t_plain",
    "ALTER TABLE t DROP CONSTRAINT t_n",
    "ALTER TABLE t ADD COLUMN x int",
    "ALTER TABLE t ADD COLUMN x int NOT NULL DEFAULT 0",
    "ALTER TABLE t ADD COLUMN x bigserial",
    "ALTER TABLE t ADD COLUMN x bigint NOT NULL GENERATED ALWAYS AS IDENTITY",
    "ALTER TABLE t ALTER email TYPE varchar(100)",
    "ALTER TABLE t ALTER email TYPE text",
    "ALTER TABLE t ALTER price TYPE numeric(14, 8)",
    "ALTER TABLE t ALTER price TYPE numeric",
    "ALTER TABLE t ALTER n SET DEFAULT 2",
    "ALTER TABLE t ALTER id DROP NOT NULL",
    "ALTER TYPE kind ADD VALUE 'c'",
    "CREATE OR REPLACE VIEW v AS SELECT id, email, n AS number, price FROM t",
    "CREATE OR REPLACE VIEW v AS SELECT * FROM t",
    "CREATE TABLE fresh (id int); ALTER TABLE fresh RENAME id TO key; ALTER TABLE fresh DROP key; DROP TABLE fresh",
    "ALTER TABLE t ADD COLUMN x int; ALTER TABLE t RENAME x TO y; ALTER TABLE t DROP COLUMN y",
    "CREATE TEMP TABLE t AS SELECT 1; DROP TABLE t",
    "CREATE VIEW w AS SELECT 1; DROP VIEW w",
    "CREATE FUNCTION g() RETURNS int LANGUAGE sql AS 'SELECT 1'; DROP FUNCTION g()",
    "REVOKE EXECUTE ON FUNCTION f(int) FROM PUBLIC",
    "CREATE FUNCTION bad() RETURNS void LANGUAGE sql AS 'DROP TABLE t'",
    "COMMENT ON TABLE t IS 'DROP TABLE t;'",
    "SELECT 'DROP TABLE t'",
    "DO $$ BEGIN RAISE NOTICE 'DROP TABLE t'; END $$",
]


TRIGGER = (
    "CREATE FUNCTION fires() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {1} END $$; "
    "CREATE TRIGGER x {0} INSERT ON t FOR EACH ROW EXECUTE FUNCTION fires()"
)


def findings(write: WriteMigrations, sql: str, *, used: int | None = 1, between: str = "") -> list[Finding]:
    files = {"002_own": between, "003_new": sql} if between else {"002_new": sql}
    directory = write(_001_old=OLD, **files)
    read = read_migrations(directory)
    return lint_all(read, selected=read[-1:], baseline=0, used=used, with_squawk=False)


def errors(write: WriteMigrations, sql: str, *, used: int | None = 1, between: str = "") -> list[str]:
    return [each.rule for each in findings(write, sql, used=used, between=between) if each.severity == "error"]


@pytest.mark.parametrize("sql", CONTRACTING)
def test_what_a_release_may_need_is_not_taken_without_the_header(write_migrations: WriteMigrations, sql: str) -> None:
    assert "contract-without-header" in errors(write_migrations, f"{sql};")
    assert "contract-without-header" not in errors(write_migrations, f"-- phase: contract\n{sql};")
    ignored = f"-- lint-ignore contract-without-header: no release reads it\n{sql};"
    assert "contract-without-header" in errors(write_migrations, ignored)


@pytest.mark.parametrize("sql", EXPANDING)
def test_what_no_release_needs_is_not_refused(write_migrations: WriteMigrations, sql: str) -> None:
    assert [rule for rule in errors(write_migrations, f"{sql};") if rule != "drop-cascade"] == []


def test_what_is_newer_than_every_release_may_go(write_migrations: WriteMigrations) -> None:
    added = "CREATE TABLE mine (id int); ALTER TABLE t ADD COLUMN mine int;"
    sql = "DROP TABLE mine; ALTER TABLE t DROP COLUMN mine;"

    assert errors(write_migrations, sql, used=1, between=added) == []
    assert errors(write_migrations, sql, used=2, between=added) == ["contract-without-header"] * 2
    known = findings(write_migrations, sql, used=None, between=added)
    assert {(each.rule, each.severity) for each in known} == {("contract-without-header", "warning")}


@pytest.mark.parametrize(
    "sql",
    [
        "ALTER TABLE t ADD CONSTRAINT c CHECK (n < 10)",
        "ALTER TABLE t ADD CONSTRAINT c CHECK (n < 10) NOT VALID",
        "ALTER TABLE t ADD UNIQUE (n)",
        "ALTER TABLE t ADD FOREIGN KEY (n) REFERENCES t (id) NOT VALID",
        "ALTER TABLE t ADD CONSTRAINT c UNIQUE USING INDEX t_unique",
        "CREATE UNIQUE INDEX i ON t (n)",
        "ALTER DOMAIN positive ADD CHECK (value > 0)",
        "CREATE RULE r AS ON INSERT TO t DO INSTEAD NOTHING",
        "ALTER TABLE t ADD COLUMN x text DEFAULT 'a' UNIQUE",
        "ALTER TABLE t ADD COLUMN x int CHECK (n < 10)",
        "CREATE TABLE p (LIKE t) PARTITION BY LIST (n); ALTER TABLE p ATTACH PARTITION t FOR VALUES IN (1)",
        "CREATE TRIGGER x BEFORE INSERT ON t FOR EACH ROW EXECUTE FUNCTION unknown()",
        TRIGGER.format("BEFORE", "RAISE EXCEPTION 'no'; RETURN NEW;"),
        TRIGGER.format("AFTER", "raise unique_violation; RETURN NEW;"),
        TRIGGER.format("BEFORE", "RETURN NULL;"),
    ],
)
def test_a_condition_on_rows_of_old_releases_needs_a_reason(write_migrations: WriteMigrations, sql: str) -> None:
    assert errors(write_migrations, f"{sql};") == ["may-refuse-writes"]
    assert (
        errors(write_migrations, f"-- lint-ignore may-refuse-writes: the service checks it since v0.1.0\n{sql};") == []
    )
    assert errors(write_migrations, "CREATE TABLE t2 (n int UNIQUE); ALTER TABLE t2 ADD CHECK (n > 0);") == []


@pytest.mark.parametrize(
    "sql",
    [
        "ALTER TABLE t ADD COLUMN x text UNIQUE",
        "ALTER TABLE t ADD COLUMN x text DEFAULT 'a' CHECK (x IN ('a', 'b'))",
        TRIGGER.format("BEFORE", "NEW.n := 1; RAISE NOTICE 'no'; /* RAISE */ RETURN NEW; -- RETURN NULL"),
        TRIGGER.format("AFTER", "PERFORM pg_notify('a', 'b'); RETURN NULL;"),
        "CREATE TABLE t2 (n int); CREATE TRIGGER x BEFORE INSERT ON t2 EXECUTE FUNCTION unknown()",
    ],
)
def test_what_refuses_no_row_of_an_old_release_needs_no_reason(write_migrations: WriteMigrations, sql: str) -> None:
    assert errors(write_migrations, f"{sql};") == []


def test_cascade_on_something_newer_is_named(write_migrations: WriteMigrations) -> None:
    added = "CREATE FUNCTION mine() RETURNS int LANGUAGE sql AS 'SELECT 1';"

    assert errors(write_migrations, "DROP FUNCTION mine() CASCADE;", between=added) == ["drop-cascade"]
    assert errors(write_migrations, "DROP FUNCTION mine();", between=added) == []


def test_a_finding_in_a_block_has_the_line_inside(write_migrations: WriteMigrations) -> None:
    sql = "SELECT 1;\nDO $$\nDECLARE\n    é record;\nBEGIN\n    -- ;\n    ALTER TABLE t DROP COLUMN n;\nEND $$;"

    [finding] = findings(write_migrations, sql)

    assert (finding.line, finding.rule) == (7, "contract-without-header")
    assert finding.message.startswith("drops column public.t.n, which a release in use may need")


@pytest.mark.parametrize("used", [1, 6, 7, 8])
def test_the_shipped_migrations_take_nothing_from_a_release(used: int) -> None:
    files = read_migrations(SHIPPED)

    assert [each for each in lint_all(files, used=used, with_squawk=False) if each.severity == "error"] == []


DROP = "ALTER TABLE t DROP COLUMN n"
LEAVES = [
    f"{DROP};",
    f"EXECUTE '{DROP}';",
    "EXECUTE 'ALTER TABLE t ' || 'DROP COLUMN n';",
    "EXECUTE format('ALTER TABLE %I DROP COLUMN %I', 't', 'n');",
    "EXECUTE format('DROP TABLE %I', name) USING 1;",
    "EXECUTE 'DROP TABLE ' || quote_ident(name) INTO x;",
    f"EXECUTE $q${DROP}$q$;",
    "x := bad(1);",
    "PERFORM bad(1);",
    "CALL bad(1);",
    "RAISE NOTICE '%', bad(1);",
    "EXIT WHEN bad(1) = 1;",
    "SELECT bad(1) INTO x;",
    "INSERT INTO t (n) VALUES (1) RETURNING bad(1) INTO STRICT x, r.y;",
    "RETURN bad(1);",
    "RETURN QUERY EXECUTE 'DROP TABLE t';",
    "EXECUTE name;",
    "EXECUTE format('%s', name);",
]
HARMLESS = ["x := 1;", "NULL;", "r.y := CASE WHEN true THEN 1 ELSE 2 END;", "-- END; THEN\n", "/* ; */ x = 2;"]


def blocks(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    shapes = [
        "BEGIN {0} EXCEPTION WHEN others THEN {1} END;",
        "IF CASE WHEN x = 1 THEN true ELSE false END THEN {1} ELSIF x > 2 THEN {0} ELSE {1} END IF;",
        "<<again>> LOOP {1} {0} EXIT; END LOOP again;",
        "FOR r IN SELECT 1 AS y LOOP {0} END LOOP;",
        "FOR x IN 1..2 LOOP {1} {0} END LOOP;",
        "FOREACH x IN ARRAY ARRAY[1, 2] LOOP {0} END LOOP;",
        "WHILE x < (SELECT count(*) FROM t) LOOP {0} END LOOP;",
        "CASE x WHEN 1 THEN {1} WHEN 2 THEN {0} ELSE {1} END CASE;",
        "CASE WHEN x > 1 THEN {1} ELSE {0} END CASE;",
        "DECLARE z numeric(3, 1) := 2; q observatory.jobs; BEGIN {1} {0} END;",
    ]
    harmless = st.lists(st.sampled_from(HARMLESS), max_size=2).map(" ".join)
    return st.builds(
        lambda shape, bad, good: shape.format(bad, good or "NULL;"), st.sampled_from(shapes), inner, harmless
    )


@settings(max_examples=60)
@given(body=st.recursive(st.sampled_from(LEAVES), blocks, max_leaves=6))
def test_no_place_in_a_block_hides_a_statement(body: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    found = _rules_of_block(tmp_path_factory.mktemp("set"), body)

    assert found & {"contract-without-header", "unseen-statement"}


@settings(max_examples=60)
@given(body=st.recursive(st.sampled_from(HARMLESS), blocks, max_leaves=6))
def test_a_harmless_block_is_clean(body: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    assert _rules_of_block(tmp_path_factory.mktemp("set"), body or "NULL;") == set()


def _rules_of_block(directory: Path, body: str) -> set[str]:
    files = {
        "001_old.sql": OLD,
        "002_new.sql": "CREATE FUNCTION bad(x int) RETURNS int LANGUAGE plpgsql AS "
        "'BEGIN DROP TABLE IF EXISTS t; RETURN 1; END';\n"
        f"DO $block$ DECLARE x int; name text; r record; BEGIN {body} END $block$;",
    }
    for name, sql in files.items():
        (directory / name).write_text(sql, encoding="utf-8")
    read = read_migrations(directory)
    return {each.rule for each in lint_all(read, selected=read[1:], baseline=0, used=1, with_squawk=False)}
