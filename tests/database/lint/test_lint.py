"""Each rule has an example that it finds and one that it does not; squawk tests its own rules."""

from pathlib import Path

import pytest

from observatory.database import MigrationFileError, read_migrations
from observatory.database.lint import Finding, LintError, lint, lint_all
from observatory.database.lint import __main__ as command
from tests.database.conftest import SHIPPED, WriteMigrations

VIEW = "CREATE MATERIALIZED VIEW v WITH (timescaledb.continuous) AS SELECT 1 FROM traces"
FUNCTION = "FUNCTION f() RETURNS int {} LANGUAGE sql AS 'SELECT 1'; ALTER TABLE traces ADD COLUMN a int DEFAULT f();"
TABLES = """
CREATE TABLE traces (ts timestamptz NOT NULL, duration_ms integer, tokens bigint, cost numeric);
SELECT create_hypertable('traces', by_range('ts'));
CREATE TABLE plain (id bigint, n integer);
"""
OUTSIDE = "-- transaction: false\n"


@pytest.fixture
def write(write_migrations: WriteMigrations) -> WriteMigrations:
    """Write a set whose 001 makes a hypertable and a plain table."""
    write_migrations(_001_tables=TABLES)
    return write_migrations


def rules(directory: Path, name: str = "002_b.sql") -> list[str]:
    return [finding.rule for finding in lint(directory / name, baseline=0)]


@pytest.mark.parametrize(
    ("rule", "bad", "good"),
    [
        (
            "concurrently-on-hypertable",
            OUTSIDE + "CREATE INDEX CONCURRENTLY IF NOT EXISTS i ON traces (ts);",
            OUTSIDE + "CREATE INDEX IF NOT EXISTS i ON traces (ts) WITH (timescaledb.transaction_per_chunk);",
        ),
        (
            "index-blocks-hypertable",
            "CREATE INDEX i ON traces (ts);",
            OUTSIDE + "CREATE INDEX IF NOT EXISTS i ON traces (ts) WITH (timescaledb.transaction_per_chunk);",
        ),
        (
            "require-concurrent-index-creation",
            "CREATE INDEX i ON plain (id);",
            OUTSIDE + "CREATE INDEX CONCURRENTLY IF NOT EXISTS i ON plain (id);",
        ),
        (
            "needs-no-transaction",
            "CREATE INDEX CONCURRENTLY IF NOT EXISTS i ON plain (id);",
            OUTSIDE + "CREATE INDEX CONCURRENTLY IF NOT EXISTS i ON plain (id);",
        ),
        ("needs-no-transaction", "VACUUM plain;", OUTSIDE + "VACUUM plain;"),
        (
            "needs-no-transaction",
            "CREATE INDEX i ON traces (ts) WITH (timescaledb.transaction_per_chunk);",
            OUTSIDE + "CREATE INDEX IF NOT EXISTS i ON traces (ts) WITH (timescaledb.transaction_per_chunk);",
        ),
        (
            "integer-overflow",
            "CREATE VIEW v AS SELECT sum(duration_ms * duration_ms) FROM traces;",
            "CREATE VIEW v AS SELECT sum(duration_ms::numeric * duration_ms) FROM traces;",
        ),
        (
            "integer-overflow",
            "CREATE VIEW v AS SELECT avg(t.duration_ms * 1000) FROM traces t;",
            "CREATE VIEW v AS SELECT avg(t.duration_ms::bigint * 1000) FROM traces t;",
        ),
        (
            "integer-overflow",
            "CREATE VIEW v AS SELECT sum(tokens * duration_ms) FROM traces;",
            "CREATE VIEW v AS SELECT sum(tokens * cost) FROM traces;",
        ),
        (
            "integer-overflow",
            "CREATE VIEW v AS SELECT sum(duration_ms)::integer FROM traces;",
            "CREATE VIEW v AS SELECT sum(duration_ms) * 100 FROM traces;",
        ),
        (
            "volatile-default-on-hypertable",
            "ALTER TABLE traces ADD COLUMN id uuid DEFAULT gen_random_uuid();",
            "ALTER TABLE traces ADD COLUMN id uuid;",
        ),
        (
            "volatile-default-on-hypertable",
            "CREATE TABLE t (ts timestamptz, r float8 DEFAULT random()); SELECT create_hypertable('t', 'ts');",
            "CREATE TABLE t (ts timestamptz, r float8 DEFAULT 0.5); SELECT create_hypertable('t', 'ts');",
        ),
        (
            "volatile-default-on-hypertable",
            "CREATE " + FUNCTION.format(""),
            "CREATE " + FUNCTION.format("STABLE"),
        ),
        ("prefer-robust-stmts", OUTSIDE + "CREATE TABLE t (id bigint);", "CREATE TABLE t (id bigint);"),
        ("unusable-file", "CREATE TABLE t (id bigint); COMMIT;", "CREATE TABLE t (id bigint);"),
        ("unusable-file", "BEGIN; CREATE TABLE t (id bigint);", "CREATE TABLE t (id bigint);"),
        ("unusable-file", "CREATE TABLE t (id bigint); ROLLBACK;", "CREATE TABLE t (id bigint);"),
        ("unusable-file", "CREATE TABEL t ();", "CREATE TABLE t ();"),
    ],
)
def test_a_rule_finds_its_problem_and_nothing_else(write: WriteMigrations, rule: str, bad: str, good: str) -> None:
    assert rule in rules(write(_002_b=bad))
    assert rule not in rules(write(_002_b=good))


@pytest.mark.parametrize(
    ("rule", "bad", "good"),
    [
        (
            "policy-without-if-not-exists",
            "SELECT add_retention_policy('traces', drop_after => INTERVAL '90 days');",
            "SELECT add_retention_policy('traces', drop_after => INTERVAL '90 days', if_not_exists => true);",
        ),
        (
            "policy-without-if-not-exists",
            "SELECT add_compression_policy('traces', INTERVAL '7 days', if_not_exists => false);",
            "SELECT add_compression_policy('traces', INTERVAL '7 days', if_not_exists => true);",
        ),
        (
            "policy-without-if-not-exists",
            "SELECT remove_retention_policy('traces');",
            "SELECT remove_retention_policy('traces', if_exists => true);",
        ),
        (
            "needs-no-transaction",
            VIEW + ";",
            VIEW + " WITH NO DATA;",
        ),
        (
            "needs-no-transaction",
            "CALL refresh_continuous_aggregate('v', NULL, NULL);",
            OUTSIDE + "CALL refresh_continuous_aggregate('v', NULL, NULL);",
        ),
    ],
)
def test_a_rule_applies_to_files_of_the_community_edition(
    write: WriteMigrations, rule: str, bad: str, good: str
) -> None:
    name = "002_b.community.sql"
    for sql, found in ((bad, True), (good, False)):
        directory = write(**{"002_b.community": sql, "002_b.apache": "SELECT 1;"})
        assert (rule in rules(directory, name)) is found


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT add_retention_policy('traces', drop_after => INTERVAL '90 days', if_not_exists => true);",
        VIEW + " WITH NO DATA;",
        "ALTER TABLE traces SET (timescaledb.compress);",
        "SELECT time_bucket_gapfill('1 hour', ts) FROM traces;",
        "SELECT add_job('f', '1 hour');",
    ],
)
def test_a_community_feature_is_allowed_in_a_community_file_only(write: WriteMigrations, sql: str) -> None:
    assert "community-feature" in rules(write(_002_b=sql))

    (write() / "002_b.sql").unlink()
    directory = write(**{"002_b.apache": sql, "002_b.community": sql})
    assert "community-feature" in rules(directory, "002_b.apache.sql")
    assert "community-feature" not in rules(directory, "002_b.community.sql")


def test_a_finding_has_file_line_and_column(write: WriteMigrations) -> None:
    directory = write(_002_b="-- é\nCREATE VIEW v AS\n    SELECT sum(duration_ms * duration_ms) FROM traces;")

    (finding,) = lint(directory / "002_b.sql")

    assert finding == Finding(
        file="002_b.sql",
        line=3,
        column=28,
        rule="integer-overflow",
        message="this product is computed as integer, which overflows. Cast one side to numeric first",
        severity="error",
    )
    assert str(finding).startswith("002_b.sql:3:28: error: this product")


def test_lines_and_columns_of_squawk_count_from_one(write: WriteMigrations) -> None:
    directory = write(_002_b="SELECT 1;\n  ALTER TABLE plain DROP CONSTRAINT plain_check;")

    (finding,) = [each for each in lint(directory / "002_b.sql") if each.rule == "ban-drop-constraint"]

    assert (finding.line, finding.column, finding.severity) == (2, 21, "warning")


def test_the_shipped_migrations_are_clean() -> None:
    assert lint_all(read_migrations(SHIPPED)) == []


def test_rules_about_locks_skip_the_files_of_the_first_release(write: WriteMigrations) -> None:
    directory = write(_002_b="CREATE INDEX i ON plain (id); CREATE INDEX j ON traces (ts);")

    assert lint(directory / "002_b.sql", baseline=2) == []
    assert len(lint(directory / "002_b.sql", baseline=1)) == 2


def test_a_header_ignores_a_rule_with_a_reason(write: WriteMigrations) -> None:
    sql = "TRUNCATE plain;"

    assert rules(write(_002_b=f"-- Title\n-- lint-ignore removes-rows: they are test data\n{sql}")) == []
    assert rules(write(_002_b=f"-- lint-ignore removes-rows\n{sql}")) == ["ignored-without-reason", "removes-rows"]
    assert rules(write(_002_b=f"{sql}\n-- lint-ignore removes-rows: too late")) == ["removes-rows"]


def test_a_header_that_ignores_nothing_is_a_finding(write: WriteMigrations) -> None:
    assert rules(write(_002_b="-- lint-ignore ban-drop-column: a reason\nSELECT 1;")) == ["ignored-for-nothing"]


def test_squawks_own_ignore_comment_is_a_finding(write: WriteMigrations) -> None:
    directory = write(_002_b="-- squawk-ignore ban-drop-constraint\nSELECT 1;")

    assert rules(directory) == ["ignored-without-reason"]


def test_an_unusable_file_does_not_hide_the_others(write: WriteMigrations) -> None:
    directory = write(_002_b="CREATE TABEL t ();", _003_c="ALTER TABLE plain DROP COLUMN n;")

    found = lint_all(read_migrations(directory))

    assert [(finding.file, finding.rule) for finding in found] == [
        ("002_b.sql", "unusable-file"),
        ("003_c.sql", "contract-without-header"),
    ]
    assert 'syntax error at or near "TABEL"' in found[0].message


def test_a_missing_file_is_an_error(write: WriteMigrations) -> None:
    with pytest.raises(MigrationFileError, match=r"009_x\.sql: there is no such migration"):
        lint(write() / "009_x.sql")


def test_a_missing_squawk_is_an_error_with_a_remedy(
    write: WriteMigrations, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))

    with pytest.raises(LintError, match="Install the package squawk-cli"):
        lint(write() / "001_tables.sql")


def test_the_command_lists_findings_and_fails(write: WriteMigrations, capsys: pytest.CaptureFixture[str]) -> None:
    directory = write(_002_b="ALTER TABLE plain DROP COLUMN n;")

    assert command.main([str(directory)]) == 1
    assert capsys.readouterr().out.startswith("002_b.sql:1:1: warning: drops column public.plain.n, which")
    assert command.main([str(SHIPPED)]) == 0
    assert command.main([str(directory / "none")]) == 2
    assert "none" in capsys.readouterr().err
