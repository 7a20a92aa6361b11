"""Presentation of a plan: a tree of components with every difference, or JSON.

Secrets and unknowns arrive masked. A text that is left out for length is replaced by its size.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from difflib import SequenceMatcher
from typing import TYPE_CHECKING, Any

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.text import Text

from observatory.engines.embedded import PropertyChange, Step
from observatory.engines.embedded.values import PROVIDER_KEY
from observatory.operations import PendingMigration, Plan
from observatory.operations.plan import is_schema

if TYPE_CHECKING:
    from observatory.operations import Overview

INTERNAL = "__"  # prefix of the SDK's own properties
INDENT = 2
NARROWEST = 20  # columns for text, however deep in the tree and narrow the terminal
MOST_TYPES = 5  # of one package, in the summary
CONTEXT = 2  # unchanged lines shown around a changed one
MARKS = {"create": ("+", "green"), "update": ("~", "yellow"), "replace": ("±", "magenta"), "delete": ("-", "red")}
LEFT_OVER = {"delete-replaced": "delete", "remove-pending-replace": "delete", "create-replacement": "create"}
SECRET = "[secret]"  # noqa: S105 - as the engine masks it
UNSEEN = "no declared value changes: the provider found a difference in the real resource, or a secret changed"


def overview_view(found: Overview) -> Text:
    """Return the summary of a plan, a few lines for each heading that has any."""
    placeholders = [
        f"{each.key}: {each.value}{f' (line {each.line})' if each.line else ''}" for each in found.placeholders
    ]
    sections = {
        "To create": list(_created(found.created)),
        "To replace": found.replaced,
        "To delete": found.deleted,
        "Public": found.public,
        "Protected from deletion": found.protected,
        "Single points of failure": found.single,
        "Placeholders in the stack's file": placeholders,
        "Settings that exclude each other": found.contradictions,
    }
    lines = [
        Text.assemble((f"{title}\n", "bold"), *(f"  {line}\n" for line in entries))
        for title, entries in sections.items()
        if entries
    ]
    return Text().join(lines)


def _created(counts: Mapping[str, int]) -> Iterator[str]:
    """Yield one line for each package: the number of its new resources, and of each type, the most frequent first."""
    packages: dict[str, Counter[str]] = {}
    for name, count in counts.items():
        package, _, kind = _type(name).partition(":")
        packages.setdefault(package, Counter())[kind.rpartition(":")[2]] += count
    for package, kinds in sorted(packages.items(), key=lambda each: -each[1].total()):
        named = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common(MOST_TYPES))
        others = len(kinds) - MOST_TYPES
        yield f"{package} {kinds.total()}: {named}{f', and {others} more types' if others > 0 else ''}"


def plan_json(plan: Plan) -> dict[str, Any]:
    """Return the plan as the document that docs/engine.md describes."""
    pending = [{"file": each.file, "edition": each.edition, "sql": each.sql} for each in plan.migrations]
    schema = {"schema_plan": plan.schema.as_json()} if plan.schema else {}
    return {
        "engine": plan.engine,
        "offline": plan.offline,
        "notes": list(plan.notes),
        "steps": [
            _step_json(step) | ({"pending_migrations": pending, **schema} if _applies(step) else {})
            for step in _main(plan)
        ],
        "summary": plan.result.summary,
        "outputs": plan.result.outputs,
        "duration": round(plan.result.duration, 3),
    }


def plan_view(plan: Plan, *, new: bool = True, full: bool = False) -> RenderableType:
    """Return the plan as a tree of the changed resources, new ones with `new`, and their long texts with `full`."""
    steps = {step.urn: step for step in _main(plan)}
    children: dict[str, list[Step]] = {}
    for step in sorted(steps.values(), key=lambda step: (step.name, step.urn)):
        children.setdefault(step.parent if step.parent in steps else "", []).append(step)
    view = _View(children, plan.migrations, new=new, full=full)
    return Group(*(Text(f"note: {note}", style="yellow") for note in plan.notes), *view.below("", depth=0))


class _View:
    """Turns steps, by their parents, into indented lines."""

    def __init__(
        self, children: Mapping[str, list[Step]], migrations: tuple[PendingMigration, ...], *, new: bool, full: bool
    ) -> None:
        self._children, self._migrations, self._new, self._full = children, migrations, new, full

    def below(self, urn: str, depth: int) -> Iterator[RenderableType]:
        for step in self._children.get(urn, ()):
            inner = [*self._details(step, depth + 2), *self.below(step.urn, depth + 1)]
            if inner or self._shows(step):
                yield _Line(_head(step), depth)
                yield from inner

    def _details(self, step: Step, depth: int) -> Iterator[RenderableType]:
        if self._shows(step):
            is_new = step.operation == "create"
            for line in _creation(step.changes, self._full) if is_new else _differences(step):
                yield _Line(line, depth)
        if _applies(step):
            for line in self._sql(in_full=self._full or step.operation != "create"):
                yield _Line(line, depth)

    def _shows(self, step: Step) -> bool:
        return step.operation in MARKS and (self._new or step.operation != "create")

    def _sql(self, *, in_full: bool) -> Iterator[Text]:
        yield Text("pending migrations:" if self._migrations else "pending migrations: none", style="bold")
        for migration in self._migrations:
            where = f" (where the server's edition is {migration.edition})" if migration.edition else ""
            if in_full:
                yield Text(f"  {migration.file}{where}:", style="bold")
                yield from (Text(f"    {line}") for line in migration.sql.splitlines())
            else:
                yield Text(f"  {migration.file}{where}: {_size(migration.sql)}")


def _main(plan: Plan) -> list[Step]:
    """Return one step for each resource; of a replacement, the step that names the changes."""
    chosen: dict[str, Step] = {}
    for step in plan.result.steps:
        if step.operation != "refresh" and (step.urn not in chosen or step.operation == "replace"):
            chosen[step.urn] = step
    return list(chosen.values())


def _step_json(step: Step) -> dict[str, Any]:
    return {
        "urn": step.urn,
        "type": step.type,
        "name": step.name,
        "parent": step.parent,
        "operation": step.operation,
        "changes": [
            {"path": change.path, "kind": change.kind, "old": change.old, "new": change.new}
            for change in step.changes
            if not change.path.startswith(INTERNAL)
        ],
        "replaces": list(step.replaces),
    }


def _applies(step: Step) -> bool:
    return is_schema(step) and step.operation in {"create", "update", "replace"}


class _Line:
    """One line of the tree; a line wider than the terminal continues with a hanging indent."""

    def __init__(self, text: Text, depth: int) -> None:
        own = len(text.plain) - len(text.plain.lstrip())
        self._text, self._margin = text[own:], depth * INDENT + own

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width = max(NARROWEST, options.max_width - self._margin - INDENT)
        for number, part in enumerate(self._text.wrap(console, width, overflow="fold")):
            part.rstrip()
            yield Text(" " * (self._margin + (INDENT if number else 0))) + part


def _head(step: Step) -> Text:
    operation = LEFT_OVER.get(step.operation, step.operation)
    mark, style = MARKS.get(operation, (" ", ""))
    label = f"{mark} {operation} " if operation in MARKS else ""
    return Text.assemble((label, style), (step.name, "bold"), "  ", (_type(step.type), "dim"))


def _type(type_: str) -> str:
    """Shorten `aws:ec2/subnet:Subnet` to `aws:ec2:Subnet`, and drop the prefix of dynamic resources."""
    parts = type_.removeprefix("pulumi-python:dynamic/").split(":")
    return ":".join(part.partition("/")[0] for part in parts)


def _creation(changes: tuple[PropertyChange, ...], full: bool) -> Iterator[Text]:
    for change in sorted(changes, key=lambda change: change.path):
        if not change.path.startswith(INTERNAL):
            yield from _value(change.path, change.new, full)


def _value(name: str, value: Any, full: bool, depth: int = 0) -> Iterator[Text]:
    """Yield a new value, one line for each leaf."""
    lead = " " * depth * INDENT + f"{name}: "
    text = _readable(value)
    if isinstance(value, dict) and value:
        yield Text(lead.rstrip())
        for key, child in sorted(value.items()):
            yield from _value(str(key), child, full, depth + 1)
    elif isinstance(value, list) and any(isinstance(item, dict | list) or "\n" in str(item) for item in value):
        yield Text(lead.rstrip())
        for number, item in enumerate(value):
            yield from _value(f"[{number}]", item, full, depth + 1)
    elif "\n" not in text:
        yield Text(lead + text)
    elif full:
        yield Text(lead.rstrip())
        yield from (Text(" " * (depth + 1) * INDENT + line) for line in text.splitlines())
    else:
        yield Text(lead + _size(text))


def _size(text: str) -> str:
    return f"{len(text.splitlines())} lines (--full shows them)"


def _differences(step: Step) -> Iterator[Text]:
    named = {change.path for change in step.changes}
    for change in sorted(step.changes, key=lambda change: change.path):
        yield from _difference(change, forces=_forces(step, change))
    unnamed = [reason for reason in step.replaces if not any(path.startswith(reason) for path in named)]
    if unnamed:
        yield Text(f"replaced because of: {', '.join(unnamed)}")
    elif not step.changes and step.operation in {"update", "replace"}:
        yield Text(UNSEEN, style="dim")


def _forces(step: Step, change: PropertyChange) -> bool:
    return any(change.path.startswith(reason) or reason.startswith(change.path) for reason in step.replaces)


def _difference(change: PropertyChange, *, forces: bool) -> Iterator[Text]:
    why = " (forces replacement)" if forces else ""
    if change.path == PROVIDER_KEY:
        yield Text(f"code of the dynamic provider{why}")
        return
    old, new = _readable(change.old), _readable(change.new)
    if change.kind == "add":
        yield from _lines(f"+ {change.path}:", new, "+", why)
    elif change.kind == "delete":
        yield from _lines(f"- {change.path}:", old, "-", why)
    elif old == new == SECRET:
        yield Text(f"~ {change.path}: {SECRET} changed{why}", style="yellow")
    elif "\n" in old or "\n" in new:
        yield Text(f"~ {change.path}:{why}", style="yellow")
        yield from _line_diff(old, new)
    else:
        yield Text.assemble((f"~ {change.path}: ", "yellow"), (old, "red"), " → ", (new, "green"), why)


def _lines(head: str, text: str, mark: str, why: str) -> Iterator[Text]:
    style = "green" if mark == "+" else "red"
    if "\n" not in text:
        yield Text(f"{head} {text}{why}", style=style)
        return
    yield Text(head + why, style=style)
    yield from (Text(f"  {mark} {line}", style=style) for line in text.splitlines())


def _line_diff(old: str, new: str) -> Iterator[Text]:
    """Yield the lines that differ with some context, and the number of lines left out between."""
    before, after = old.splitlines(), new.splitlines()
    at = 0
    for group in SequenceMatcher(a=before, b=after, autojunk=False).get_grouped_opcodes(CONTEXT):
        yield from _unchanged(group[0][1] - at)
        for kind, first, last, begin, end in group:
            if kind == "equal":
                yield from (Text(f"    {line}", style="dim") for line in before[first:last])
            else:
                yield from (Text(f"  - {line}", style="red") for line in before[first:last])
                yield from (Text(f"  + {line}", style="green") for line in after[begin:end])
        at = group[-1][2]
    yield from _unchanged(len(before) - at)


def _unchanged(count: int) -> Iterator[Text]:
    if count:
        yield Text(f"    … {count} unchanged line{'s' if count > 1 else ''}", style="dim")


def _readable(value: Any) -> str:
    """Return a value as text; documents in JSON, such as policies, over several lines."""
    if not isinstance(value, str):
        return json.dumps(value, ensure_ascii=False, sort_keys=True, indent=2 if _is_deep(value) else None)
    if value[:1] in {"{", "["} and value not in {SECRET, "[unknown]", "[secret, unknown]"}:
        try:
            document = json.loads(value)
        except ValueError:
            return value
        return json.dumps(document, ensure_ascii=False, indent=2) if _is_deep(document) else value
    return value


def _is_deep(value: Any) -> bool:
    return isinstance(value, dict | list) and any(
        isinstance(child, dict | list) for child in (value.values() if isinstance(value, dict) else value)
    )
