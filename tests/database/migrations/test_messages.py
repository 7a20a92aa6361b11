"""What a failed or talkative file reports: the place inside a block, excerpts, notices, and remedies that work."""

import pytest

from observatory.database import StatementFailedError
from observatory.database.migrations.events import Event
from tests.database.conftest import Deploy, WriteMigrations

HEADER = "-- transaction: false\n"
FUNCTION = "CREATE FUNCTION {}() RETURNS int LANGUAGE plpgsql AS $$\nBEGIN\n  RETURN 1 / 0;\nEND $$;\n"


@pytest.mark.parametrize(
    ("sql", "message"),
    [
        ("SELECT 'é';\nDO $x$\nBEGIN\n  PERFORM 1;\n  PERFORM 1/0;\nEND $x$;", r"4:3: division by zero"),
        (
            "DO 'BEGIN\n  INSERT INTO missing VALUES (1);\nEND';",
            r"2:3: relation \"missing\" does not exist; in the query",
        ),
        (f"{FUNCTION.format('f')}SELECT f();", r"3:3: division by zero; in PL/pgSQL function f\(\) line 3 at RETURN"),
        (f'{FUNCTION.format(chr(34) + "F" + chr(34))}SELECT "F"();', r"3:3: division by zero"),
        (
            f"{FUNCTION.format('f')}DO $$\nBEGIN\n  PERFORM f();\nEND $$;",
            r"3:3: division by zero; in PL/pgSQL function f",
        ),
        (
            "DO $$\nBEGIN\n  EXECUTE 'SELEC 1';\nEND $$;",
            r"3:3: syntax error at or near \"SELEC\"; in the query SELEC 1 ",
        ),
        ("DO $$\nBEGIN\n  RAISE EXCEPTION '%', repeat('x', 100000);\nEND $$;", r"3:3: x{150,199}… \(SQLSTATE"),
        (f"CREATE TABLE a (b int);\nINSERT INTO a VALUES ('{'x' * 5000}');", r"2:23: invalid input .{0,250}\(SQLSTATE"),
    ],
)
@pytest.mark.parametrize("header", ["", HEADER])
def test_an_error_inside_a_block_or_function_has_its_line_in_the_file(
    run_deploy: Deploy, write_migrations: WriteMigrations, sql: str, message: str, header: str
) -> None:
    line, _, rest = message.partition(":")
    expected = rf"^001_a\.sql:{int(line) + (1 if sql.startswith('SELECT') else 0) + header.count(chr(10))}:{rest}"
    with pytest.raises(StatementFailedError, match=expected) as caught:
        run_deploy(migrations=write_migrations(_001_a=header + sql), linted=False)
    assert len(str(caught.value)) < 900


def test_an_error_in_a_function_of_another_file_names_the_function(
    run_deploy: Deploy, write_migrations: WriteMigrations
) -> None:
    run_deploy(migrations=write_migrations(_001_a=FUNCTION.format("f")))

    with pytest.raises(StatementFailedError, match=r"^002_b\.sql:2:1: .* in PL/pgSQL function f\(\) line 3 at RETURN"):
        run_deploy(migrations=write_migrations(_002_b="SELECT 1;\nSELECT f();"))


def test_notices_are_events_with_their_severity_and_are_bounded(
    run_deploy: Deploy, write_migrations: WriteMigrations
) -> None:
    events: list[Event] = []
    say = "DO $$ BEGIN RAISE WARNING 'two rows are left'; RAISE NOTICE '%', repeat('x', 100000); END $$;\n"
    loop = "DO $$ BEGIN FOR n IN 1..1000 LOOP RAISE NOTICE '%', n; END LOOP; END $$;"

    run_deploy(migrations=write_migrations(_001_a=say, _002_b=loop), on_event=events.append)

    first, second = ([e.detail for e in events if e.kind == "notice" and e.migration == n] for n in ("001_a", "002_b"))
    assert first == ["WARNING: two rows are left", f"NOTICE: {'x' * 199}…"]
    assert len(second) == 51
    assert second[-1] == "the file sends more than 50; the others are not shown"


ENUM = "ALTER TYPE mood ADD VALUE 'calm';", "INSERT INTO moods VALUES ('calm');"
DEFERRED = (
    "CREATE TABLE p (i int PRIMARY KEY); CREATE TABLE c (i int REFERENCES p DEFERRABLE INITIALLY DEFERRED);\n"
    "INSERT INTO p VALUES (1); INSERT INTO c VALUES (1);\n{}ALTER TABLE c ADD j int;"
)
COMMITS = "CREATE PROCEDURE p() LANGUAGE plpgsql AS $$ BEGIN COMMIT; END $$;"


@pytest.mark.parametrize(
    ("failing", "remedy", "mended"),
    [
        ("\n".join(ENUM), "to its own file before this one", {"_002_b": ENUM[0], "_003_c": ENUM[1]}),
        ("\n".join(ENUM), "'-- transaction: false' as the first line", {"_002_b": HEADER + "\n".join(ENUM)}),
        (
            f"{COMMITS} CALL p();",
            "with the first line '-- transaction: false'",
            {"_002_b": f"{HEADER}{COMMITS} CALL p();"},
        ),
        (
            DEFERRED.format(""),
            "SET CONSTRAINTS ALL IMMEDIATE before",
            {"_002_b": DEFERRED.format("SET CONSTRAINTS ALL IMMEDIATE;\n")},
        ),
        (
            "DROP TYPE mood;",
            "Drop or change the named objects before it",
            {"_002_b": "DROP TABLE moods; DROP TYPE mood;"},
        ),
        (
            "ALTER TABLE moods ADD PRIMARY KEY (m);",
            "Correct the rows in the statement or in one before it",
            {"_002_b": "DELETE FROM moods; ALTER TABLE moods ADD PRIMARY KEY (m);"},
        ),
    ],
)
def test_the_remedy_of_an_error_works(
    run_deploy: Deploy, write_migrations: WriteMigrations, failing: str, remedy: str, mended: dict[str, str]
) -> None:
    start = (
        "CREATE TYPE mood AS ENUM ('glad'); CREATE TABLE moods (m mood); INSERT INTO moods VALUES ('glad'), ('glad');"
    )
    run_deploy(migrations=write_migrations(_001_a=start))
    with pytest.raises(StatementFailedError, match=remedy):
        run_deploy(migrations=write_migrations(_002_b=failing), linted=False)

    assert run_deploy(migrations=write_migrations(**mended), linted=False).applied
