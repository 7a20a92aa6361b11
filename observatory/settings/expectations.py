"""Says of a value that pydantic refused what was expected, in the words of this project's own messages."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

# By pydantic's kind of error, with the names of its context.
EXPECTED: Mapping[str, str] = {
    "missing": "is required and not set",
    "extra_forbidden": "is an unknown name",
    "int_type": "expected a whole number",
    "int_parsing": "expected a whole number",
    "int_parsing_size": "expected a smaller number",
    "int_from_float": "expected a whole number",
    "float_type": "expected a number",
    "float_parsing": "expected a number",
    "finite_number": "expected a finite number",
    "bool_type": "expected true or false",
    "bool_parsing": "expected true or false",
    "string_type": "expected a text",
    "path_type": "expected the path of a file",
    "list_type": "expected a list",
    "tuple_type": "expected a list",
    "dict_type": "expected a group of names and values",
    "model_type": "expected a group of names and values",
    "model_attributes_type": "expected a group of names and values",
    "literal_error": "expected {expected}",
    "enum": "expected {expected}",
    "greater_than": "expected more than {gt}",
    "greater_than_equal": "expected at least {ge}",
    "less_than": "expected less than {lt}",
    "less_than_equal": "expected at most {le}",
    "string_pattern_mismatch": "expected a text that matches {pattern}",
    "string_too_short": "expected a text of {min_length} or more characters",
    "string_too_long": "expected a text of at most {max_length} characters",
    "too_short": "expected {min_length} or more entries",
    "too_long": "expected at most {max_length} entries",
    "json_invalid": "is not valid JSON: {error}",
}
_OWN_WORDS = re.compile(
    r"^(?:Value error|Assertion failed), |^(?:Input|Value|URL|Decimal|Datetime) should (?:be|have) "
)


def expectation(problem: Any) -> str:
    """Return what was expected, for one of the errors of a ValidationError."""
    if template := EXPECTED.get(problem["type"]):
        return template.format(**problem.get("ctx", {}))
    text = str(problem["msg"])
    rest = _OWN_WORDS.sub("", text)
    if problem["type"] in ("value_error", "assertion_error"):
        return rest
    return f"expected {rest}" if rest != text else text[0].lower() + text[1:]
