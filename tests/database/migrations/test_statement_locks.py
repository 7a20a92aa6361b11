"""The locks and rewrites that follow from the text of a statement."""

import pytest

from observatory.database.migrations.statement_locks import Lock, expected_effects, strongest
from observatory.database.migrations.statements import Statement


@pytest.mark.parametrize(
    ("sql", "mode", "relation", "rewrites"),
    [
        ("ALTER TABLE a ADD b int", "ACCESS EXCLUSIVE", "a", False),
        ("ALTER TABLE a ADD b int DEFAULT 0", "ACCESS EXCLUSIVE", "a", False),
        ("ALTER TABLE a ADD b uuid DEFAULT gen_random_uuid()", "ACCESS EXCLUSIVE", "a", True),
        ("ALTER TABLE a ADD b int GENERATED ALWAYS AS (1) STORED", "ACCESS EXCLUSIVE", "a", True),
        ("ALTER TABLE other.a ALTER b TYPE bigint", "ACCESS EXCLUSIVE", "other.a", True),
        ("ALTER TABLE a VALIDATE CONSTRAINT b", "SHARE UPDATE EXCLUSIVE", "a", False),
        ("ALTER TABLE a ALTER b SET STATISTICS 9", "SHARE UPDATE EXCLUSIVE", "a", False),
        ("ALTER TABLE a ADD FOREIGN KEY (b) REFERENCES c", "SHARE ROW EXCLUSIVE", "a", False),
        ("ALTER TABLE a DISABLE TRIGGER b", "SHARE ROW EXCLUSIVE", "a", False),
        ("ALTER TABLE a RENAME TO b", "ACCESS EXCLUSIVE", "a", False),
        ("CREATE TABLE a (b int REFERENCES c)", "SHARE ROW EXCLUSIVE", "c", False),
        ("CREATE INDEX ON a (b)", "SHARE", "a", False),
        ("CREATE INDEX CONCURRENTLY i ON a (b)", "SHARE UPDATE EXCLUSIVE", "a", False),
        ("DROP INDEX CONCURRENTLY i", "SHARE UPDATE EXCLUSIVE", "i", False),
        ("DROP TABLE public.a", "ACCESS EXCLUSIVE", "a", False),
        ("DROP TRIGGER t ON a", "ACCESS EXCLUSIVE", "a", False),
        ("CREATE TRIGGER t BEFORE INSERT ON a EXECUTE FUNCTION f()", "SHARE ROW EXCLUSIVE", "a", False),
        ("TRUNCATE a", "ACCESS EXCLUSIVE", "a", False),
        ("VACUUM a", "SHARE UPDATE EXCLUSIVE", "a", False),
        ("VACUUM FULL a", "ACCESS EXCLUSIVE", "a", True),
        ("CLUSTER a USING i", "ACCESS EXCLUSIVE", "a", True),
        ("REINDEX TABLE CONCURRENTLY a", "SHARE UPDATE EXCLUSIVE", "a", False),
        ("REFRESH MATERIALIZED VIEW CONCURRENTLY a", "EXCLUSIVE", "a", True),
        ("INSERT INTO a VALUES (1)", "ROW EXCLUSIVE", "a", False),
        ("UPDATE a SET b = 1", "ROW EXCLUSIVE", "a", False),
        ("SELECT 1 FROM a FOR UPDATE", "ROW SHARE", "a", False),
        ("LOCK TABLE a IN SHARE MODE", "SHARE", "a", False),
        ("CREATE POLICY p ON a", "ACCESS EXCLUSIVE", "a", False),
    ],
)
def test_the_text_of_a_statement_determines_its_locks_and_rewrites(
    sql: str, mode: str, relation: str, rewrites: bool
) -> None:
    found = expected_effects(Statement(sql=sql, offset=0))

    assert strongest(found.locks) == Lock(mode, relation)
    assert found.rewrites == ((relation,) if rewrites else ())


@pytest.mark.parametrize(
    "sql", ["CREATE TABLE a ()", "SELECT create_hypertable('a', 'b')", "DROP FUNCTION f", "SET a.b = 1"]
)
def test_a_statement_without_a_known_lock_has_none(sql: str) -> None:
    assert expected_effects(Statement(sql=sql, offset=0)).locks == ()
