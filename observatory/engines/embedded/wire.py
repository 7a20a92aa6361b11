"""Converts property values to and from protobuf messages, and imports Pulumi's protocol without the SDK."""

from __future__ import annotations

import sys
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
        UnsupportedError: it contains an asset or an archive.
    """
    properties: Properties = transform(json_format.MessageToDict(message), _plain)
    return properties


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
