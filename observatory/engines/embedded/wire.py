"""Converts property values to and from protobuf messages, and imports Pulumi's protocol without the SDK."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Any

from google.protobuf import json_format, struct_pb2  # type: ignore[import-untyped]
from google.protobuf.message import Message  # type: ignore[import-untyped]

from observatory.engines.embedded.errors import UnsupportedError
from observatory.engines.embedded.values import ASSETS, SIGNATURE, Properties, transform

_EXACT_INTEGERS = 2**53  # above it, a double does not represent every integer


def from_struct(message: Message) -> Properties:
    """Return a protobuf structure as property values, and another message as its fields by their JSON names.

    Raises:
        ValueError: a number in it is not finite; the message has its place.
        UnsupportedError: it contains an asset or an archive.
    """
    if place := next(_not_finite(message, ""), None):
        raise ValueError(f"{place}: a state has finite numbers only; use None or a text")
    properties: Properties = transform(json_format.MessageToDict(message), _plain)
    return properties


def _not_finite(message: Message, place: str) -> Iterator[str]:
    """Yield each number of a message, in whatever depth, that JSON cannot express, with its place and value."""
    if isinstance(message, struct_pb2.Value):
        kind = message.WhichOneof("kind")
        if kind == "number_value" and not math.isfinite(message.number_value):
            yield f"{place} is {message.number_value}"
        elif kind in {"struct_value", "list_value"}:
            yield from _not_finite(getattr(message, kind), place)
    elif isinstance(message, struct_pb2.Struct):
        for key, value in message.fields.items():
            yield from _not_finite(value, f"{place}.{key}" if place else key)
    elif isinstance(message, struct_pb2.ListValue):
        for number, value in enumerate(message.values):
            yield from _not_finite(value, f"{place}[{number}]")
    else:
        for _, value in message.ListFields():
            if isinstance(value, struct_pb2.Struct):
                yield from _not_finite(value, place)


def to_struct(properties: Properties) -> struct_pb2.Struct:
    """Return property values as a protobuf structure."""
    struct = struct_pb2.Struct()
    struct.update(properties)
    return struct


def protocol(name: str) -> ModuleType:
    """Import a module of `pulumi.runtime.proto` without `import pulumi`, which takes a third of a second."""
    package = f"{__package__}.protocol"
    if package not in sys.modules:
        sdk = find_spec("pulumi")
        sys.modules[package] = module = ModuleType(package)
        module.__path__ = [f"{place}/runtime/proto" for place in (sdk and sdk.submodule_search_locations) or ()]
    return import_module(f"{package}.{name}")


def _plain(value: Any) -> Any:
    if isinstance(value, dict) and value.get(SIGNATURE) in ASSETS:
        raise UnsupportedError("an asset or archive as a property")
    is_integer = isinstance(value, float) and value.is_integer() and abs(value) < _EXACT_INTEGERS
    return int(value) if is_integer else value
