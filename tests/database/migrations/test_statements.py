"""Parsing the SQL of a migration file: statements, headers and refused statements."""

import subprocess
import sys

import pytest

from observatory.database import MigrationFileError, read_migrations
from observatory.database.migrations.statements import Script, parse
from tests.database.conftest import SHIPPED, WriteMigrations


def parse_text(write_migrations: WriteMigrations, sql: str) -> Script:
    return parse(read_migrations(write_migrations(_001_a=sql))[0])


def test_statements_are_split_by_the_grammar(write_migrations: WriteMigrations) -> None:
    sql = "-- é; one\nSELECT ';'; /* ; */ DO $x$ BEGIN NULL; END $x$;\nSELECT 3"

    script = parse_text(write_migrations, sql)

    assert [statement.sql for statement in script.statements] == [
        "SELECT ';'",
        "DO $x$ BEGIN NULL; END $x$",
        "SELECT 3",
    ]
    assert [script.migration.place(statement.offset) for statement in script.statements] == [
        "001_a.sql:2:1",
        "001_a.sql:2:21",
        "001_a.sql:3:1",
    ]


def test_the_header_takes_a_file_out_of_a_transaction(write_migrations: WriteMigrations) -> None:
    assert not parse_text(write_migrations, "-- why\n-- transaction: false\nVACUUM;").transactional
    assert parse_text(write_migrations, "-- transaction: true\nSELECT 1;").transactional
    assert parse_text(write_migrations, "SELECT 1;").transactional


@pytest.mark.parametrize(
    ("sql", "message"),
    [
        ("SELECT 1;\nSELCT 2;", r'001_a\.sql:2:1: syntax error at or near "SELCT"'),
        ("-- ééé\nSELECT 'é' FROM t WHERE;", r"001_a\.sql:2:24: syntax error"),
        ("SELECT 'abc", r"001_a\.sql:1:8: unterminated quoted string"),
        ("SELECT (1", r"001_a\.sql:1:10: syntax error at end of input"),
        ("SELECT 1;\n  \\connect other\n", r"001_a\.sql:2:3: \\connect is a command of psql"),
        ("-- transaction: false\nCREATE INDEX CONCURRENTLY ON a (x);", r"001_a\.sql:2:1: the index has no name"),
        (
            "-- transaction: false\nCREATE INDEX ON a (x) WITH (timescaledb.transaction_per_chunk);",
            r"001_a\.sql:2:1: the index has no name",
        ),
        ("SELECT 1;\nCOPY a (x, y) FROM stdin;\n1\t2\n\\.\n", r"001_a\.sql:2:1: COPY FROM STDIN needs a client"),
        ("-- only a comment\n", r"001_a\.sql:1:1: contains no statement"),
        ("SELECT 1;\nCOPY t FROM STDIN;\n", r"001_a\.sql:2:1: COPY FROM STDIN needs a client"),
        ("COPY t TO STDOUT;\n", "COPY TO STDOUT needs a client"),
        ("SELECT 1;\n\n  BEGIN;\nSELECT 2; COMMIT;", r"001_a\.sql:3:3: BEGIN would end or split the transaction"),
        ("SELECT 1; /* x */ commit;", r"001_a\.sql:1:19: COMMIT would end"),
        ("END;", "END would end"),
        (
            "-- transaction: false\nCOMMIT;",
            r"001_a\.sql:2:1: COMMIT would end .* of the statement .* into a file without",
        ),
        (
            "SELECT 'é';\nDO $x$ BEGIN\n  IF true THEN\n    COMMIT;\n  END IF; END $x$;",
            r"001_a\.sql:4:5: COMMIT would end",
        ),
        ("DO LANGUAGE plpgsql 'BEGIN ROLLBACK; END'", r"001_a\.sql:1:22: ROLLBACK would end the transaction"),
        ("DO $$\nBEGIN\n  SAVEPOINT a;\nEND $$", r"001_a\.sql:3:3: SAVEPOINT is no command of PL/pgSQL"),
        ("ROLLBACK;", "ROLLBACK would end"),
        ("START TRANSACTION;", "START would end"),
        ("SAVEPOINT a;", "SAVEPOINT would end"),
        ("DISCARD ALL;", r"001_a\.sql:1:1: DISCARD ALL would release the migration lock"),
        ("PREPARE TRANSACTION 'x';", "PREPARE would end"),
        ("SELECT 1;\n-- transaction: false\nVACUUM;", r"001_a\.sql:2:1: the transaction header has no effect here"),
        ("-- transaction: off\nVACUUM;", r"001_a\.sql:1:1: the transaction header is 'off'"),
    ],
)
def test_unusable_sql_is_refused_with_its_place(write_migrations: WriteMigrations, sql: str, message: str) -> None:
    with pytest.raises(MigrationFileError, match=message):
        parse_text(write_migrations, sql)


@pytest.mark.parametrize(
    ("opened", "what"),
    [("'", "quoted string"), ("$x$", "dollar-quoted string"), ("/*", "/[*] comment"), ('"', "quoted identifier")],
)
def test_what_has_no_end_is_refused_at_its_start_with_an_excerpt(
    write_migrations: WriteMigrations, opened: str, what: str
) -> None:
    rows = "(1, 2),\n" * 100_000

    with pytest.raises(
        MigrationFileError, match=rf"^001_a\.sql:2:8: unterminated {what} .*The {what} starts here"
    ) as caught:
        parse_text(write_migrations, f"SELECT 1;\nSELECT {opened} {rows}")
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    "sql",
    [
        "-- transaction: false\nDO $$ BEGIN COMMIT; END $$;",
        "CREATE PROCEDURE p() LANGUAGE plpgsql AS $$ BEGIN COMMIT; END $$;",
        "DO LANGUAGE plpython3u $$ COMMIT; $$;",
        "DO $$ BEGIN RAISE NOTICE 'COMMIT;'; -- COMMIT;\n END $$;",
        "PREPARE p AS SELECT 1;",
        "DISCARD PLANS;",
        "COPY t FROM '/tmp/x';",
        "COPY t TO PROGRAM 'true';",
    ],
)
def test_statements_that_resemble_refused_ones_are_accepted(write_migrations: WriteMigrations, sql: str) -> None:
    assert len(parse_text(write_migrations, sql).statements) == 1


def test_a_function_with_begin_atomic_is_one_statement(write_migrations: WriteMigrations) -> None:
    sql = "CREATE FUNCTION f() RETURNS int LANGUAGE sql BEGIN ATOMIC SELECT 1; SELECT 2; END; SELECT 3;"

    assert len(parse_text(write_migrations, sql).statements) == 2


def test_a_file_of_ten_megabytes_is_parsed(write_migrations: WriteMigrations) -> None:
    rows = ",".join(f"({number},'{'x' * 90}')" for number in range(100_000))

    script = parse_text(write_migrations, f"CREATE TABLE t (a int, b text);\nINSERT INTO t VALUES {rows};\n")

    assert len(script.migration.sql) > 10_000_000
    assert len(script.statements) == 2


def test_the_shipped_migrations_parse() -> None:
    assert all(parse(migration).transactional for migration in read_migrations(SHIPPED)[:3])


def test_importing_the_package_does_not_load_the_parser() -> None:
    code = "import sys, observatory.database; print([m for m in ('pglast', 'tenacity', 'pulumi') if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert result.stdout.strip() == "[]"
