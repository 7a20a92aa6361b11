"""Property values to and from the protobuf structures of Pulumi's protocol. Owns nothing else."""

from __future__ import annotations

from typing import Any

from google.protobuf import struct_pb2  # type: ignore[import-untyped]

from observatory.engine.errors import UnsupportedError
from observatory.engine.values import ASSETS, SIGNATURE, Properties

_EXACT_INTEGERS = 2**53  # beyond it a double no longer tells one integer from the next


def from_struct(struct: struct_pb2.Struct) -> Properties:
    """Return a protobuf structure as property values.

    Raises:
        UnsupportedError: it holds an asset or an archive.
    """
    return {key: _from_value(value) for key, value in struct.fields.items()}


def to_struct(properties: Properties) -> struct_pb2.Struct:
    """Return property values as a protobuf structure."""
    struct = struct_pb2.Struct()
    struct.update(properties)
    return struct


def _from_value(value: struct_pb2.Value) -> Any:
    match value.WhichOneof("kind"):
        case "string_value":
            return value.string_value
        case "number_value":
            number = value.number_value
            return int(number) if number.is_integer() and abs(number) < _EXACT_INTEGERS else number
        case "bool_value":
            return value.bool_value
        case "list_value":
            return [_from_value(item) for item in value.list_value.values]
        case "struct_value":
            properties = from_struct(value.struct_value)
            if properties.get(SIGNATURE) in ASSETS:
                raise UnsupportedError("an asset or archive as a property")
            return properties
    return None
