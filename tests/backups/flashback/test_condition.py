"""What `--where` accepts: one expression over the row, and nothing that leaves it."""

from __future__ import annotations

import pytest

from observatory.backups.flashback.condition import read_condition
from observatory.backups.flashback.errors import ConditionError


@pytest.mark.parametrize(
    "text",
    [
        "",
        "true) OR (true",
        "true; DROP TABLE users",
        "true) UNION SELECT (1",
        "true) LIMIT (1",
        "true] || ARRAY[true",
        "true GROUP BY ts",
        "a /* ",
        "'a",
        "trace_id IN (SELECT id FROM users)",
        "EXISTS (SELECT)",
        "trace_id = $1",
        "ctid IS NOT NULL",
        "llm_traces.xmin IS NOT NULL",
    ],
)
def test_what_is_no_expression_over_the_row_is_refused(text: str) -> None:
    with pytest.raises(ConditionError):
        read_condition(text)


@pytest.mark.parametrize(
    "text",
    [
        "user_id = 'u1' -- a comment",
        "ts >= now() - INTERVAL '1 day' AND NOT sampled",
        "message LIKE '100%' OR tags && ARRAY['a', 'b']",
        "(attributes ->> 'x')::int > 3",
        'E\'\\\'\' <> "Odd ""name"',
    ],
)
def test_an_expression_over_the_row_is_accepted(text: str) -> None:
    assert read_condition(text).text == text


def test_the_functions_and_operators_of_an_expression_are_found() -> None:
    found = read_condition("public.f(lower(a)) ~ 'x' AND b -> 'c' = 'd'")
    assert found.functions == {("public", "f"), (None, "lower")}
    assert found.operators == {"~", "->", "="}
