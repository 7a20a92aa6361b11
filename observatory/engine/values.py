"""Property values: what resources take and give, in the JSON form that Pulumi's protocol and checkpoint share.

A value is plain JSON, with signed objects for what JSON lacks: ``{SIGNATURE: SECRET, "value": ...}`` is a secret,
``{SIGNATURE: RESOURCE, "urn": ..., "id": ...}`` a resource reference, the string UNKNOWN a value not known yet.
Owns the operations on such values. Encryption belongs to ``secrets``, protobuf to ``wire``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

# Constants of Pulumi's wire format: sdk/go/common/resource/properties.go, sdk/python/lib/pulumi/runtime/rpc.py.
SIGNATURE = "4dabf18193072939515e22adb298388d"
SECRET = "1b47061264138c4ac30d75fd1eb44270"  # noqa: S105 - a type tag
RESOURCE = "5cf8f73096256a8f31e491e813e4eb8e"
ASSETS = {"c44067f5952c0a294b673a41bacd8c17", "0def7320c3a5731c473e5ecbe6d01bc7"}
UNKNOWN = "04da6b54-80e4-46f7-96ec-b56ff0331ba9"

_SHORTEST_SCRUBBED = 4  # characters; shorter ones are in any text by chance
PROVIDER_KEY = "__provider"  # a dynamic resource's pickled provider

Properties = dict[str, Any]
_PATH = re.compile(r'\.?([^.\[\]"]+)|\[(?:"((?:[^"\\]|\\.)*)"|(\d+|\*))\]')


def is_secret(value: Any) -> bool:
    """Tell whether the value itself is a secret."""
    return isinstance(value, dict) and value.get(SIGNATURE) == SECRET


def make_secret(value: Any) -> Properties:
    """Wrap a value as a secret."""
    return {SIGNATURE: SECRET, "value": value}


def has_secret(value: Any) -> bool:
    """Tell whether the value is or contains a secret."""
    return is_secret(value) or any(has_secret(child) for child in _children(value))


def reveal(value: Any) -> Any:
    """Return the value as providers see it: secrets in plain text, resource references as ID or URN."""
    if isinstance(value, dict):
        match value.get(SIGNATURE):
            case None:
                return {key: reveal(child) for key, child in value.items()}
            case tag if tag == SECRET:
                return reveal(value["value"])
            case tag if tag == RESOURCE:
                return reveal(value["id"]) if "id" in value else value["urn"]
    if isinstance(value, list):
        return [reveal(child) for child in value]
    return value


def mask(value: Any) -> Any:
    """Return the value fit for display: secrets and unknowns replaced by ``[secret]`` and ``[unknown]``."""
    if is_secret(value):
        return "[secret, unknown]" if value.get("value") == UNKNOWN else "[secret]"
    if isinstance(value, dict):
        return {key: mask(child) for key, child in value.items()}
    if isinstance(value, list):
        return [mask(child) for child in value]
    return "[unknown]" if value == UNKNOWN else value


def scrub(text: str, properties: Properties) -> str:
    """Return the text without the secrets of these properties, as far as they stand in it literally."""
    for secret in _secret_texts(properties):
        text = text.replace(secret, "[secret]")
    return text


def keep_secret(outputs: Properties, inputs: Mapping[str, Any]) -> Properties:
    """Mark in place, as secret, each output whose input of the same name is or contains one (as the CLI does)."""
    for key, given in inputs.items():
        out = outputs.get(key)
        if isinstance(out, dict) and isinstance(given, dict) and SIGNATURE not in out and SIGNATURE not in given:
            keep_secret(out, given)
        elif key in outputs and not is_secret(out) and has_secret(given):
            outputs[key] = make_secret(out)
    return outputs


def parse_path(path: str) -> tuple[str, ...]:
    """Split a property path such as ``a.b[0]["c.d"]`` into its keys; ``*`` stands for every key."""
    return tuple(next(group for group in match.groups() if group is not None) for match in _PATH.finditer(path))


def path_covers(path: tuple[str, ...], other: tuple[str, ...]) -> bool:
    """Tell whether a property path is another one or a parent of it."""
    return len(path) <= len(other) and all(a in {"*", b} for a, b in zip(path, other, strict=False))


def keep_ignored(new: Properties, old: Properties, paths: list[str]) -> Properties:
    """Return the new inputs with the old value put back at every ignored path."""
    kept: Properties = _copy(new)
    for path in paths:
        _put_back(kept, old, parse_path(path))
    return kept


@dataclass(frozen=True, kw_only=True)
class PropertyChange:
    """One difference between two property bags, fit for display (secrets and unknowns are masked).

    Attributes:
        path: The property's path, such as ``tags.owner`` or ``ports[0]``.
        kind: What happened to it.
        old: Its masked old value (None for ``add``).
        new: Its masked new value (None for ``delete``).
    """

    path: str
    kind: Literal["add", "delete", "update"]
    old: Any = None
    new: Any = None


def differences(old: Any, new: Any, path: str = "") -> Iterator[PropertyChange]:
    """Yield what changed from one value to another, down to the leaves; secrecy alone is no change."""
    if reveal(old) == reveal(new):
        return
    pairs = _pairs(old, new)
    if not path and not pairs:
        return
    if pairs is None:
        yield PropertyChange(path=path, kind="update", old=mask(old), new=mask(new))
        return
    for key, (before, after) in pairs.items():
        child = key if key.startswith("[") or not path else f".{key}"
        if before is _ABSENT:
            yield PropertyChange(path=path + child, kind="add", new=mask(after))
        elif after is _ABSENT:
            yield PropertyChange(path=path + child, kind="delete", old=mask(before))
        else:
            yield from differences(before, after, path + child)


_ABSENT = object()


def _pairs(old: Any, new: Any) -> dict[str, tuple[Any, Any]] | None:
    if isinstance(old, dict) and isinstance(new, dict) and SIGNATURE not in old and SIGNATURE not in new:
        keys = [*old, *(key for key in new if key not in old)]
        return {key: (old.get(key, _ABSENT), new.get(key, _ABSENT)) for key in keys}
    if isinstance(old, list) and isinstance(new, list):
        length = max(len(old), len(new))
        before, after = (items + [_ABSENT] * (length - len(items)) for items in (old, new))
        return {f"[{index}]": (before[index], after[index]) for index in range(length)}
    return None


def _secret_texts(value: Any, *, inside: bool = False) -> Iterator[str]:
    if isinstance(value, str):
        if inside and len(value) >= _SHORTEST_SCRUBBED:
            yield value
        return
    for child in _children(value):
        yield from _secret_texts(child, inside=inside or is_secret(value))


def _children(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else []


def _copy(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _copy(child) for key, child in value.items()}
    return [_copy(child) for child in value] if isinstance(value, list) else value


def _put_back(new: Any, old: Any, path: tuple[str, ...]) -> None:
    keys = {*_keys(new), *_keys(old)} if path[0] == "*" else {path[0]}
    for key in keys:
        before, after = _get(old, key), _get(new, key)
        if len(path) > 1:
            if isinstance(after, dict | list):
                _put_back(after, before, path[1:])
        elif isinstance(new, dict):
            new.pop(key, None) if before is _ABSENT else new.__setitem__(key, _copy(before))
        elif _ABSENT not in (before, after):
            new[int(key)] = _copy(before)


def _keys(value: Any) -> list[str]:
    if isinstance(value, dict):
        return list(value)
    return [str(index) for index in range(len(value))] if isinstance(value, list) else []


def _get(value: Any, key: str) -> Any:
    if isinstance(value, dict):
        return value.get(key, _ABSENT)
    if isinstance(value, list) and key.isdigit() and int(key) < len(value):
        return value[int(key)]
    return _ABSENT
