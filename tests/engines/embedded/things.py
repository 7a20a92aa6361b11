"""The resources of the tests' programs: a dynamic provider that records every call.

The lab copies this file beside each test's program. Inputs control it: a changed ``rep`` replaces (with ``dbr``,
deleting first), any other change updates; ``fail`` names the operation to fail, ``wait`` delays a creation until a file
appears. ``actual.json`` holds what ``read`` finds, by resource name.
"""

import json
import os
import time
from pathlib import Path
from typing import Any

import pulumi
from pulumi.dynamic import (
    CheckFailure,
    CheckResult,
    CreateResult,
    DiffResult,
    ReadResult,
    Resource,
    ResourceProvider,
    UpdateResult,
)

HERE = Path(os.environ["ENGINE_LAB"])


def _plain(props: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in props.items() if key != "__provider"}


def record(*call: Any) -> None:
    """Append one call to calls.jsonl (appends this short are atomic)."""
    line = json.dumps(call, sort_keys=True, default=lambda _: "<unknown>") + "\n"
    with (HERE / "calls.jsonl").open("a") as file:
        file.write(line)


class Recorder(ResourceProvider):
    """Records each call."""

    serialize_as_secret_always = False

    def check(self, olds: dict[str, Any], news: dict[str, Any]) -> CheckResult:
        record("check", _plain(olds), _plain(news))
        bad = [CheckFailure("size", "must not be negative")] if str(news.get("size")).startswith("-") else []
        return CheckResult(news, bad)

    def diff(self, id_: str, olds: dict[str, Any], news: dict[str, Any]) -> DiffResult:
        record("diff", id_, _plain(olds), _plain(news))
        changed = [key for key in {**_plain(olds), **_plain(news)} if key in news and olds.get(key) != news[key]]
        return DiffResult(
            changes=bool(changed),
            replaces=[key for key in changed if key == "rep"],
            delete_before_replace=bool(news.get("dbr")),
        )

    def create(self, props: dict[str, Any]) -> CreateResult:
        name = props["name"]
        record("create", _plain(props))
        _maybe_fail("create", props)
        while props.get("wait") and not (HERE / props["wait"]).exists():
            time.sleep(0.02)
        return CreateResult(f"{name}-{props.get('rep', '')}", _outputs(props))

    def update(self, id_: str, olds: dict[str, Any], news: dict[str, Any]) -> UpdateResult:
        record("update", id_, _plain(olds), _plain(news))
        _maybe_fail("update", news)
        return UpdateResult(_outputs(news))

    def delete(self, id_: str, props: dict[str, Any]) -> None:
        record("delete", id_, _plain(props))
        _maybe_fail("delete", props)

    def read(self, id_: str, props: dict[str, Any]) -> ReadResult:
        record("read", id_, _plain(props))
        actual = json.loads((HERE / "actual.json").read_text())
        if props["name"] not in actual:
            return ReadResult(id_, _plain(props))
        found = actual[props["name"]]
        return ReadResult(id_, _plain(props) | found) if found else ReadResult("", {})


class Undecided(Recorder):
    """Leaves the comparison to the engine."""

    def diff(self, id_: str, olds: dict[str, Any], news: dict[str, Any]) -> DiffResult:
        record("diff", id_, _plain(olds), _plain(news))
        return DiffResult()


def _outputs(props: dict[str, Any]) -> dict[str, Any]:
    size = int(props.get("size", 0))
    return _plain(props) | {"twice": size * 2, "token": f"token-of-{props['name']}"}


def _maybe_fail(operation: str, props: dict[str, Any]) -> None:
    if props.get("fail") == "die":
        os._exit(3)
    if props.get("fail") == operation and not (HERE / "mended").exists():
        msg = f"no {operation} today {props.get('key', '')}".strip()
        raise RuntimeError(msg)


class Thing(Resource, module="lab", name="Thing"):
    """A recorded resource."""

    twice: pulumi.Output[float]
    token: pulumi.Output[str]

    def __init__(self, name: str, opts: pulumi.ResourceOptions | None = None, **props: Any) -> None:
        super().__init__(Recorder(), name, {"name": name, "twice": None, "token": None, **props}, opts)


class Blank(Resource, module="lab", name="Blank"):
    """A recorded resource without a diff of its own."""

    twice: pulumi.Output[float]
    token: pulumi.Output[str]

    def __init__(self, name: str, opts: pulumi.ResourceOptions | None = None, **props: Any) -> None:
        super().__init__(Undecided(), name, {"name": name, "twice": None, "token": None, **props}, opts)


class Group(pulumi.ComponentResource):
    """A component of two things."""

    def __init__(self, name: str, opts: pulumi.ResourceOptions | None = None, **props: Any) -> None:
        super().__init__("lab:index:Group", name, props, opts)
        child = pulumi.ResourceOptions(parent=self)
        self.first = Thing(f"{name}-first", child, size=1)
        self.second = Thing(f"{name}-second", child, size=self.first.twice)
        self.register_outputs({"total": self.second.twice})
