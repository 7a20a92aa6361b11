"""Property values: a resource's inputs and outputs, in the JSON form of Pulumi's protocol and checkpoints.

A value is plain JSON with signed objects for what JSON lacks: ``{SIGNATURE: SECRET, "value": ...}`` is a secret and
``{SIGNATURE: RESOURCE, "urn": ..., "id": ...}`` a resource reference. The string UNKNOWN stands for a value that is not
known yet. ``secrets`` encrypts values, and ``wire`` converts them to protobuf.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

# Constants of Pulumi's wire format: sdk/go/common/resource/properties.go, sdk/python/lib/pulumi/runtime/rpc.py.
SIGNATURE = "4dabf18193072939515e22adb298388d"
SECRET = "1b47061264138c4ac30d75fd1eb44270"  # noqa: S105 - a type tag
RESOURCE = "5cf8f73096256a8f31e491e813e4eb8e"
ASSETS = {"c44067f5952c0a294b673a41bacd8c17", "0def7320c3a5731c473e5ecbe6d01bc7"}
UNKNOWN = "04da6b54-80e4-46f7-96ec-b56ff0331ba9"

PROVIDER_KEY = "__provider"  # a dynamic resource's pickled provider
_SHORTEST_SCRUBBED = 4  # characters; shorter secrets occur in many texts by chance
_PATH = re.compile(r'\.?([^.\[\]"]+)|\[(?:"((?:[^"\\]|\\.)*)"|(\d+|\*))\]')

Properties = dict[str, Any]


def transform(value: Any, function: Callable[[Any], Any]) -> Any:
    """Return the value with the function applied to each part of it, innermost parts first."""
    if isinstance(value, dict):
        value = {key: transform(child, function) for key, child in value.items()}
    elif isinstance(value, list):
        value = [transform(child, function) for child in value]
    return function(value)


def parts(value: Any) -> Iterator[Any]:
    """Yield the value and all its parts, outermost first."""
    yield value
    for child in _items(value).values():
        yield from parts(child)


def is_secret(value: Any) -> bool:
    """Return whether the value itself is a secret."""
    return isinstance(value, dict) and value.get(SIGNATURE) == SECRET


def make_secret(value: Any) -> Properties:
    """Wrap a value as a secret, and unwrap the secrets inside it."""
    return {SIGNATURE: SECRET, "value": transform(value, lambda part: part["value"] if is_secret(part) else part)}


def reveal(value: Any) -> Any:
    """Return the value as providers receive it: secrets in plain text, resource references as ID or URN."""

    def plain(part: Any) -> Any:
        tag = part.get(SIGNATURE) if isinstance(part, dict) else None
        if tag == RESOURCE:
            return part.get("id", part["urn"])
        return part["value"] if tag == SECRET else part

    return transform(value, plain)


def mask(value: Any) -> Any:
    """Return the value for display: secrets and unknowns are replaced by ``[secret]`` and ``[unknown]``."""

    def shown(part: Any) -> Any:
        if is_secret(part):
            return "[secret, unknown]" if part.get("value") == "[unknown]" else "[secret]"
        return "[unknown]" if part == UNKNOWN else part

    return transform(value, shown)


def scrub(text: str, properties: Properties) -> str:
    """Return the text with literal occurrences of the properties' secrets replaced by ``[secret]``."""
    hidden = [part for secret in filter(is_secret, parts(properties)) for part in parts(secret["value"])]
    for part in hidden:
        if isinstance(part, str) and len(part) >= _SHORTEST_SCRUBBED:
            text = text.replace(part, "[secret]")
    return text


def keep_secret(outputs: Properties, inputs: Mapping[str, Any]) -> Properties:
    """Mark each output as secret whose input of the same name is or contains a secret, as the CLI does. In place."""
    for key in outputs.keys() & inputs.keys():
        out, given = outputs[key], inputs[key]
        if isinstance(out, dict) and isinstance(given, dict) and SIGNATURE not in out and SIGNATURE not in given:
            keep_secret(out, given)
        elif not is_secret(out) and any(map(is_secret, parts(given))):
            outputs[key] = make_secret(out)
    return outputs


def parse_path(path: str) -> tuple[str, ...]:
    """Split a property path such as ``a.b[0]["c.d"]`` into its keys; ``*`` stands for every key."""
    return tuple(next(group for group in match.groups() if group is not None) for match in _PATH.finditer(path))


def path_covers(path: tuple[str, ...], other: tuple[str, ...]) -> bool:
    """Return whether a property path equals the other one or is a parent of it."""
    return len(path) <= len(other) and all(a in {"*", b} for a, b in zip(path, other, strict=False))


def keep_ignored(new: Properties, old: Properties, paths: list[str]) -> Properties:
    """Return the new inputs with the old value restored at every ignored path."""
    for path in paths:
        new = _restore(new, old, *parse_path(path))
    return new


def _restore(new: Any, old: Any, key: str, *deeper: str) -> Any:
    if not isinstance(new, dict | list):
        return new
    news, olds = _items(new), _items(old)
    keys = (news | olds).keys() if key == "*" else {key}
    for name in keys if isinstance(new, dict) else keys & news.keys() & olds.keys():
        if deeper:
            news |= {name: _restore(news[name], olds.get(name), *deeper)} if name in news else {}
        elif name in olds:
            news[name] = olds[name]
        else:
            news.pop(name, None)
    return news if isinstance(new, dict) else list(news.values())


@dataclass(frozen=True, kw_only=True)
class PropertyChange:
    """One difference between two sets of properties, for display; secrets and unknowns are masked.

    Attributes:
        path: The property's path, such as ``tags.owner`` or ``ports[0]``.
        kind: Whether the property is added, deleted or updated.
        old: Its masked old value (None for ``add``).
        new: Its masked new value (None for ``delete``).
    """

    path: str
    kind: Literal["add", "delete", "update"]
    old: Any = None
    new: Any = None


def differences(old: Any, new: Any, path: str = "") -> Iterator[PropertyChange]:
    """Yield the changes from one value to another, down to the leaves; secrecy alone is not a change."""
    if reveal(old) == reveal(new):
        return
    if not isinstance(old, dict | list) or type(old) is not type(new) or SIGNATURE in old or SIGNATURE in new:
        yield PropertyChange(path=path, kind="update", old=mask(old), new=mask(new))
        return
    olds, news = _items(old), _items(new)
    for key in olds | news:
        inner = f"{path}[{key}]" if isinstance(old, list) else f"{path}.{key}" if path else key
        if key not in olds:
            yield PropertyChange(path=inner, kind="add", new=mask(news[key]))
        elif key not in news:
            yield PropertyChange(path=inner, kind="delete", old=mask(olds[key]))
        else:
            yield from differences(olds[key], news[key], inner)


def _items(value: Any) -> dict[str, Any]:
    """Return the items of an object or a list by key or index; empty for another value."""
    if isinstance(value, dict):
        return dict(value)
    return {str(index): item for index, item in enumerate(value)} if isinstance(value, list) else {}
