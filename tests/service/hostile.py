"""Bodies that cost a naive server much time or memory, and that are below the limit of bytes."""

import json
from collections.abc import Callable

from service.storage_service.bodies import MAX_BODY_BYTES
from tests.service.harness import item


def with_attributes(raw: bytes) -> bytes:
    """Return a body with one item, whose attributes are this text."""
    return json.dumps({"items": [item(attributes="@")]}).encode().replace(b'"@"', raw)


def filled(unit: bytes, size: int = MAX_BODY_BYTES - 2000) -> bytes:
    return unit * (size // len(unit))


BODIES: dict[str, Callable[[], bytes]] = {
    "5 million lists": lambda: with_attributes(b"[" + filled(b"[],") + b"[]]"),
    "deep": lambda: with_attributes(filled(b"[")),
    "deep below the limit of values": lambda: with_attributes(b"[" * 200_000 + b"]" * 200_000),
    "numbers": lambda: with_attributes(b"[" + (b"1" * 4000 + b",") * 3000 + b"1]"),
    "one number": lambda: with_attributes(filled(b"1")),
    "exponents": lambda: with_attributes(b"[" + b"1e999," * 100_000 + b"1]"),
    "string": lambda: with_attributes(b'"' + filled(b"\\n") + b'"'),
    "many keys": lambda: b'{"items":[{' + b",".join(b'"%d":1' % key for key in range(200_000)) + b"}]}",
    "repeated keys": lambda: b'{"items":[{' + b",".join([b'"model":"x"'] * 200_000) + b"}]}",
    "many items": lambda: b'{"items":[' + filled(b"{},") + b"{}]}",
    "invalid UTF-8": lambda: with_attributes(b'"' + filled(b"\xff") + b'"'),
    "quotes": lambda: b'{"items":[' + filled(b'"",') + b'""]}',
}
