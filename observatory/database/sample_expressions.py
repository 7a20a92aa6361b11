"""SQL expressions that mask one value, for a source that is only read: no function is created in it.

All of them are keyed by HMAC-SHA256 (RFC 2104), so that without the key of the target no list of guesses reverses them.
The source's session has the two halves of the key in settings (`key_settings`). Each row has secrets of its own
(`row_secrets`), which its numbers, times and lengths are changed by.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Callable, Mapping

from psycopg import sql

Mask = Callable[[str], str]  # from the SQL of a value to the SQL of the masked value
Known = Mapping[str, frozenset[str]]  # the values of a domain that stay as they are

_BLOCK = 64  # bytes: the block of SHA-256
_SEPARATOR = "\x1f"  # of the domain and the value; no domain has it. Domains with # are no names of masks
DIGITS = 20  # hexadecimal digits of a pseudonym: 80 bits

MOST_USD, MOST_INTEGER = "9999.99999999", "2147483647"  # of the types numeric(12, 8) and integer
LONGEST_TEXT = 262144  # characters: the limit of texts in the schema, which a longer text must not exceed
# A factor between 0.8 and 1.2 that is never near 1: no number above 10 keeps its value.
_FACTOR = "CASE WHEN {0} < 0.5 THEN 0.8 + 0.3 * {0} ELSE 0.9 + 0.3 * {0} END"
_DAY, _HOUR = 86_400_000_000, 3_600_000_000  # microseconds
_SHIFT_FROM, _SHIFT_TO = 5 * _HOUR, 7 * _DAY  # more than the bend of the time adds, so no row is in the future

# The domain of the values of these keys of JSON objects, in lower case.
REFERENCES: Mapping[str, str] = {
    **dict.fromkeys(("user_id", "userid", "user.id", "enduser.id", "owner_id"), "user"),
    **dict.fromkeys(("session_id", "sessionid", "session.id", "conversation_id", "gen_ai.conversation.id"), "session"),
    **dict.fromkeys(("trace_id", "traceid"), "trace"),
    **dict.fromkeys(("span_id", "spanid", "parent_span_id", "parentspanid"), "span"),
    **dict.fromkeys(("project_id", "project.id"), "project"),
    **dict.fromkeys(("environment", "deployment.environment", "deployment.environment.name"), "environment"),
    **dict.fromkeys(("model", "gen_ai.request.model", "gen_ai.response.model"), "model"),
    **dict.fromkeys(("provider", "gen_ai.system", "gen_ai.provider.name"), "provider"),
    "role": "role",
    "finish_reason": "finish_reason",
}
# Vocabularies of the protocols, which say nothing about a person. A value that differs in one character is masked.
PUBLIC: Known = {
    "span_kind": frozenset({"internal", "client", "server", "producer", "consumer"}),
    "input_type": frozenset({"text", "chat", "messages", "embedding", "completion"}),
    "finish_reason": frozenset({"stop", "length", "tool_calls", "function_call", "content_filter", "error"}),
    "log_level": frozenset({"TRACE", "DEBUG", "INFO", "WARN", "WARNING", "ERROR", "FATAL", "CRITICAL"}),
    "role": frozenset({"system", "developer", "user", "assistant", "tool", "function"}),
    "key": frozenset({*REFERENCES, "content", "type", "text", "name", "attributes", "timestamp", "ts"}),
}
UUID_DOMAIN = "project"  # its ids are of the type uuid


def key_settings(key: str) -> dict[str, str]:
    """Return the settings of the source's session that the expressions read."""
    padded = key.encode().ljust(_BLOCK, b"\0")
    pads = {"inner": 0x36, "outer": 0x5C}
    return {f"observatory.sample_{name}": bytes(byte ^ pad for byte in padded).hex() for name, pad in pads.items()}


def fingerprint(key: str, domain: str, value: str) -> str:
    """Return the keyed digest of a value as the expressions compute it, in hexadecimal."""
    return hmac.new(key.encode(), f"{domain}{_SEPARATOR}{value}".encode(), hashlib.sha256).hexdigest()


def literal(value: str) -> str:
    """Return a text as a literal of SQL."""
    return sql.Literal(value).as_string(None)


def keyed(domain: str, value: str) -> str:
    """Return the hexadecimal digest of a text: of the expressions `domain` and `value`."""
    inner, outer = (f"decode(current_setting('observatory.sample_{pad}'), 'hex')" for pad in ("inner", "outer"))
    message = f"convert_to({domain} || E'\\x1f' || {value}, 'UTF8')"
    return f"encode(sha256({outer} || sha256({inner} || {message})), 'hex')"


def fraction(digest: str, first: int = 1) -> str:
    """Return 8 digits of a digest, from `first` on, as a number of 0 or more and below 1."""
    return f"(('x' || substr({digest}, {first}, 8))::bit(32)::bigint / 4294967296.0::float8)"


def row_secrets(anchor: str, price: str = "''") -> str:
    """Return the joins that give each row its secrets, the same for all rows of one anchor, such as a trace's.

    Args:
        anchor: an expression of type text: what the row belongs to.
        price: the same of what its prices depend on.
    """
    digests = f"{keyed(literal('#row'), anchor)} AS own, {keyed(literal('#price'), price)} AS price"
    secrets = ", ".join(
        (
            f"{_DAY} * (1 + {fraction('digests.own', 1)}) AS cell",
            f"{_FACTOR.format(fraction('digests.own', 9))} - 1 AS bend",
            f"{_SHIFT_FROM} + {_SHIFT_TO - _SHIFT_FROM} * {fraction('digests.own', 17)} AS shift",
            f"{_FACTOR.format(fraction('digests.own', 25))} AS size",
            f"{_FACTOR.format(fraction('digests.price', 1))} AS prompt_price",
            f"{_FACTOR.format(fraction('digests.price', 9))} AS completion_price",
        )
    )
    # OFFSET 0: computed once for each row, not once for each use.
    return (
        f"CROSS JOIN LATERAL (SELECT {digests} OFFSET 0) AS digests "
        f"CROSS JOIN LATERAL (SELECT {secrets} OFFSET 0) AS secrets"
    )


def _unless_null(value: str, expression: str) -> str:
    return f"CASE WHEN {value} IS NOT NULL THEN {expression} END"


def pseudonym(domain: str, known: Known) -> Mask:
    """Return the mask of a text: one pseudonym for one value of a domain, in every column and table."""
    digest = f"left({keyed(literal(domain), '{value}')}, {DIGITS})"
    public = sorted(PUBLIC.get(domain, frozenset()) | known.get(domain, frozenset()))

    def mask(value: str) -> str:
        if domain == UUID_DOMAIN:
            return f"{uuid_pseudonym(domain)(value)}::text"
        masked = f"{literal(f'{domain}-')} || {digest.replace('{value}', value)}"
        if not public:
            return masked
        return f"CASE WHEN {value} IN ({', '.join(map(literal, public))}) THEN {value} ELSE {masked} END"

    return mask


def uuid_pseudonym(domain: str) -> Mask:
    """Return the mask of a uuid."""
    return lambda value: f"left({keyed(literal(domain), f'{value}::text')}, 32)::uuid"


def pseudonyms(domain: str, known: Known) -> Mask:
    """Return the mask of a list of texts, which keeps their order."""
    each = pseudonym(domain, known)("item")
    query = f"ARRAY(SELECT {each} FROM unnest({{value}}) WITH ORDINALITY AS items (item, n) ORDER BY n)"  # noqa: S608 - constants
    return lambda value: _unless_null(value, query.replace("{value}", value))


def text(value: str) -> str:
    """Return as many `x` as the text has characters, times the row's factor; an empty text stays empty."""
    return _unless_null(value, f"repeat('x', {_length(f'length({value})')})")


def _length(length: str) -> str:
    return f"least({LONGEST_TEXT}, round({length} * secrets.size))::integer"


def time(value: str) -> str:
    """Return the time moved by the row's shift, and stretched or compressed a little, in the same order."""
    moved = f"{_bent(_microseconds(value))} - secrets.shift"
    return (
        f"CASE WHEN isfinite({value}) THEN timestamptz 'epoch' + INTERVAL '1 microsecond' * ({moved}) ELSE {value} END"
    )


def milliseconds(value: str, since: str) -> str:
    """Return a duration in milliseconds from a time on, as long as between the masked times."""
    start = _microseconds(since)
    duration = f"({_bent(f'({start} + {value} * 1000.0::float8)')} - {_bent(start)}) / 1000"
    return _unless_null(value, f"least({MOST_INTEGER}, round({duration}))::integer")


def _microseconds(value: str) -> str:
    return f"round(extract(epoch FROM {value})::float8 * 1000000)"


def _bent(microseconds: str) -> str:
    """Stretch the first half of each of the row's cells of one to two days, and compress the second, or the reverse."""
    position = f"({microseconds} / secrets.cell - floor({microseconds} / secrets.cell))"
    return f"({microseconds} + secrets.cell * secrets.bend * least({position}, 1 - {position}))"


def count(value: str) -> str:
    """Return an integer times the row's factor."""
    return _unless_null(value, f"least({MOST_INTEGER}, round({value} * secrets.size))::integer")


def cost(kind: str) -> Mask:
    """Return the mask of costs: times the row's factor, and the price's, so that they remain tokens times price."""
    factor = f"secrets.size * secrets.{kind}_price"
    return lambda value: _unless_null(value, f"round(least({value} * {factor}, {MOST_USD})::numeric, 8)")


def price(kind: str) -> Mask:
    """Return the mask of a price, which is public and would give the model away."""
    return lambda value: f"round(least({value} * secrets.{kind}_price, {MOST_USD})::numeric, 8)"


def total(parts: tuple[str, str], masks: tuple[Mask, Mask], most: str) -> Mask:
    """Return the mask of a total: the sum of its two masked parts, where it is the sum of the parts."""
    first, second = parts
    added = f"least({most}, {masks[0](first)}::numeric + {masks[1](second)})"
    return lambda value: f"CASE WHEN {value} = {first}::numeric + {second} THEN {added} ELSE {masks[0](value)} END"


def number(value: str) -> str:
    """Return a number times a factor below 1, which no type is too small for."""
    return f"{value} * least(secrets.size, 2 - secrets.size)"


def rate(value: str) -> str:
    """Return a rate in tenths, at least 0.1."""
    return _unless_null(value, f"greatest(0.1, round({value}::numeric, 1))")


# The tokens of the text form of jsonb: strings, a name with its colon, brackets, commas, and other scalars.
_TOKEN = r'"(?:[^"\\]|\\.)*"(?:: )?|[{}\[\]]|, |[^]",{}[ ]+'  # noqa: S105 - a regular expression


def document(known: Known) -> Mask:
    """Return the mask of JSON: its structure stays, with masked names and values.

    Names that are no public vocabulary become pseudonyms, texts become `x`, numbers 0, true false. Under a name of
    `REFERENCES` a value becomes the pseudonym that the columns of its domain have.
    """
    names = sorted(json.dumps(name, ensure_ascii=False) for name in PUBLIC["key"] | known.get("key", frozenset()))
    name = (
        f"CASE WHEN left(token, -2) IN ({', '.join(map(literal, names))}) THEN token "
        f"ELSE '\"key-' || left({keyed(literal('key'), 'left(token, -2)')}, {DIGITS}) || '\": ' END"
    )
    plain = "CASE WHEN left(token, 1) = '\"' THEN token::jsonb #>> '{}' ELSE token END"
    references = " ".join(
        f"WHEN before IN ({', '.join(_named(each) for each in keys)}) "
        f"THEN to_json(({pseudonym(domain, known)(f'({plain})')}))::text"
        for domain, keys in _keys_of_domains().items()
    )
    value = f"""CASE
        WHEN token IN ('{{', '}}', '[', ']', ', ', 'null') THEN token
        WHEN right(token, 3) = '": ' THEN {name}
        {references}
        WHEN left(token, 1) = '"' THEN '"' || repeat('x', {_length("(length(token) - 2)")}) || '"'
        WHEN token IN ('true', 'false') THEN 'false'
        ELSE '0' END"""
    query = f"""(SELECT string_agg({value}, '' ORDER BY n)
        FROM (
            SELECT n, match[1] AS token, lower(lag(match[1]) OVER (ORDER BY n)) AS before
            FROM regexp_matches({{value}}::jsonb::text, {literal(_TOKEN)}, 'g') WITH ORDINALITY AS found (match, n)
        ) AS tokens)::jsonb"""  # noqa: S608
    return lambda original: _unless_null(original, query.replace("{value}", original))


def _named(key: str) -> str:
    return literal(f"{json.dumps(key)}: ")


def _keys_of_domains() -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for key, domain in REFERENCES.items():
        found.setdefault(domain, []).append(key)
    return found
