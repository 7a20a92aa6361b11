"""The masks of a sample: for each copied column, the SQL expression whose value leaves the source.

Replaces texts by as many `x`, and identities by salted hashes. The source's session has the salt in its setting
`observatory.salt`.
"""


def _kept(name: str) -> str:
    return name


def _pseudonym(name: str, prefix: str) -> str:
    digest = f"encode(sha256(convert_to(current_setting('observatory.salt') || {name}, 'UTF8')), 'hex')"
    return f"'{prefix}-' || left({digest}, 20)"


def _blank(name: str) -> str:
    """Keeps the length, so that sizes stay those of production."""
    return f"repeat('x', length({name}))"


def _blank_json(name: str) -> str:
    return f"jsonb_build_object('masked', repeat('x', length({name}::text)))"


_ROLES = "'system', 'user', 'assistant', 'tool'"
_MESSAGES = f"""
    (SELECT jsonb_agg(jsonb_build_object(
        'role', CASE WHEN part ->> 'role' IN ({_ROLES}) THEN part ->> 'role' ELSE 'other' END,
        'content', repeat('x', length(coalesce(part ->> 'content', '')))))
    FROM jsonb_array_elements(CASE jsonb_typeof(input_messages) WHEN 'array' THEN input_messages ELSE '[]' END) AS part)
"""  # noqa: S608 - constants

_MASKED_TAGS = f"SELECT {_pseudonym('tag', 'tag')} FROM unnest(tags) AS tag"  # noqa: S608 - constants

# The copied columns of each table, each with the SQL expression that leaves the source. Other columns are not copied.
MASKS: dict[str, dict[str, str]] = {
    "llm_traces": {
        **{
            name: _kept(name)
            for name in (
                *("ts", "trace_id", "span_id", "parent_span_id", "span_name", "span_kind", "provider", "model"),
                *("input_type", "finish_reason", "prompt_tokens", "completion_tokens", "total_tokens"),
                *("prompt_cost_usd", "completion_cost_usd", "total_cost_usd", "duration_ms", "ttft_ms", "status_code"),
                *("environment", "sampled", "sample_rate"),
            )
        },
        **{name: _blank(name) for name in ("input_text", "output_text", "error_message")},
        **{name: _blank_json(name) for name in ("attributes", "resource_attributes", "events", "links")},
        "input_messages": _MESSAGES,
        "user_id": _pseudonym("user_id", "user"),
        "session_id": _pseudonym("session_id", "session"),
        "tags": f"CASE WHEN tags IS NOT NULL THEN ARRAY({_MASKED_TAGS}) END",
    },
    "llm_logs": {
        **{
            name: _kept(name) for name in ("ts", "trace_id", "span_id", "log_level", "provider", "model", "environment")
        },
        "message": _blank("message"),
        "attributes": _blank_json("attributes"),
    },
    "users": {
        "id": _pseudonym("id", "user"),
        "email": _pseudonym("email", "mail") + " || '@example.invalid'",
        "name": _pseudonym("name", "name"),
        "created_at": "created_at",
        "metadata": _blank_json("metadata"),
    },
    "projects": {
        "id": "id",
        "name": _pseudonym("name", "project"),
        "slug": _pseudonym("slug", "project"),
        "owner_id": _pseudonym("owner_id", "user"),
        "created_at": "created_at",
        "settings": _blank_json("settings"),
    },
    "model_pricing": {
        name: _kept(name)
        for name in (
            "effective_date",
            "provider",
            "model",
            "prompt_cost_per_1k",
            "completion_cost_per_1k",
            "created_at",
        )
    },
}
