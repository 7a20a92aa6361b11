"""The masks of a sample: what leaves the source for each column that is copied.

Owns the masks of the product's tables and the names of the masks that a stack's settings give to its own columns.
`observatory.database.sample_expressions` has their SQL.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from observatory.database import sample_expressions as to
from observatory.database.sample_expressions import Known, Mask

FORMAT = 2  # of the masks; a target that another format was copied to is emptied first
OMIT = "omit"
RESERVED = frozenset({OMIT, "keep", "text", "json", "number", "time"})
DOMAIN = re.compile(r"[a-z][a-z0-9_]*")

# Tables of the product that are never copied, and columns of copied ones that the target fills itself.
NOT_COPIED = frozenset({"public.llm_metrics", "public.api_keys"})


def kept(value: str) -> str:
    """Return the value itself."""
    return value


@dataclass(frozen=True, kw_only=True)
class Table:
    """How the rows of a table are masked.

    Attributes:
        anchor: an expression; rows with the same one are changed by the same shift and factors.
        price: an expression of what the prices depend on.
        key: the columns that identify a row; without them, equal rows are counted.
        masks: of each copied column.
    """

    anchor: str
    masks: Mapping[str, Mask]
    key: tuple[str, ...] = ()
    price: str = "''"


def column(name: str) -> str:
    """Return a column of the original row."""
    return f'original."{name}"'


def product_tables(known: Known) -> dict[str, Table]:
    """Return the copied tables of the product, by their names in the schema public."""
    return {
        "llm_traces": _traces(known),
        "llm_logs": _logs(known),
        "users": Table(
            anchor=column("id"),
            key=("id",),
            masks={
                "id": to.pseudonym("user", known),
                # Of the user's id too: an address that moves to another user stays unique.
                "email": lambda value: _of_row("mail", value, "id") + " || '@example.invalid'",
                "name": to.pseudonym("name", known),
                "created_at": to.time,
                "metadata": to.document(known),
            },
        ),
        "projects": Table(
            anchor=f"{column('id')}::text",
            key=("id",),
            masks={
                "id": to.uuid_pseudonym("project"),
                "name": to.pseudonym("project-name", known),
                "slug": lambda value: _of_row("project", value, "id"),
                "owner_id": to.pseudonym("user", known),
                "created_at": to.time,
                "settings": to.document(known),
            },
        ),
        "model_pricing": Table(
            anchor=_price_of(),
            price=_price_of(),
            key=("provider", "model", "effective_date"),
            masks={
                "effective_date": to.time,
                **{name: to.pseudonym(name, known) for name in ("provider", "model")},
                "prompt_cost_per_1k": to.price("prompt"),
                "completion_cost_per_1k": to.price("completion"),
                "created_at": to.time,
            },
        ),
    }


def _traces(known: Known) -> Table:
    tokens = (column("prompt_tokens"), column("completion_tokens"))
    costs = (column("prompt_cost_usd"), column("completion_cost_usd"))
    of_costs = (to.cost("prompt"), to.cost("completion"))
    domains = ("span_name", "span_kind", "provider", "model", "input_type", "finish_reason", "environment")
    return Table(
        anchor=column("trace_id"),
        price=_price_of(),
        key=("trace_id", "span_id", "ts"),
        masks={
            "ts": to.time,
            "trace_id": to.pseudonym("trace", known),
            **dict.fromkeys(("span_id", "parent_span_id"), to.pseudonym("span", known)),
            **{name: to.pseudonym(name, known) for name in domains},
            "user_id": to.pseudonym("user", known),
            "session_id": to.pseudonym("session", known),
            "tags": to.pseudonyms("tag", known),
            **dict.fromkeys(("input_text", "output_text", "error_message"), to.text),
            **dict.fromkeys(
                ("input_messages", "attributes", "resource_attributes", "events", "links"), to.document(known)
            ),
            **dict.fromkeys(("prompt_tokens", "completion_tokens"), to.count),
            "total_tokens": to.total(tokens, (to.count, to.count), to.MOST_INTEGER),
            "prompt_cost_usd": of_costs[0],
            "completion_cost_usd": of_costs[1],
            "total_cost_usd": to.total(costs, of_costs, to.MOST_USD),
            **dict.fromkeys(("duration_ms", "ttft_ms"), lambda value: to.milliseconds(value, column("ts"))),
            "sample_rate": to.rate,
            **dict.fromkeys(("status_code", "sampled"), kept),
        },
    )


def _logs(known: Known) -> Table:
    return Table(
        anchor=column("trace_id"),
        masks={
            "ts": to.time,
            "trace_id": to.pseudonym("trace", known),
            "span_id": to.pseudonym("span", known),
            **{name: to.pseudonym(name, known) for name in ("log_level", "provider", "model", "environment")},
            "message": to.text,
            "attributes": to.document(known),
        },
    )


def _price_of() -> str:
    return f"{column('provider')} || E'\\x1f' || {column('model')}"


def _of_row(domain: str, value: str, identity: str) -> str:
    digest = to.keyed(to.literal(domain), f"{column(identity)}::text || E'\\x1f' || {value}")
    return f"{to.literal(f'{domain}-')} || left({digest}, {to.DIGITS})"


def own_mask(name: str, kind: str, known: Known) -> Mask | None:
    """Return the mask of an own column by its name in the settings; None if it does not fit the column's type.

    Args:
        name: `keep`, `text`, `json`, `number`, `time`, or a domain of pseudonyms.
        kind: the column's type, as format_type() names it.
        known: values that stay as they are.
    """
    base = kind.split("(", maxsplit=1)[0].strip()
    texts = {"text", "character varying", "character"}
    numbers = {"smallint", "integer", "bigint", "numeric", "real", "double precision"}
    times = {"timestamp with time zone", "timestamp without time zone", "date"}
    if kind.startswith("timestamp"):
        base = re.sub(r"\(\d+\)", "", kind)
    if name == "keep":
        return kept
    fitting: dict[str, tuple[bool, Mask]] = {
        "text": (base in texts, to.text),
        "json": (base in {"json", "jsonb"}, to.document(known)),
        "number": (base in numbers, to.number),
        "time": (base in times, to.time),
    }
    if name in fitting:
        fits, mask = fitting[name]
        return _as_type(mask, kind) if fits else None
    if kind == "uuid":
        return to.uuid_pseudonym(name)
    if kind == "text[]":
        return to.pseudonyms(name, known)
    return _as_type(to.pseudonym(name, known), kind) if base in texts else None


def _as_type(mask: Mask, kind: str) -> Mask:
    """A pseudonym that is longer than the column ends at its limit."""
    return lambda value: f"({mask(value)})::{kind}"
