"""The same small programs on both engines: operations, provider calls, state and outputs must be equal.

Each case is a list of phases, run one after the other on one stack. The expected steps are checked on the embedded
engine; with the CLI installed, it runs the same phases, and all results are compared.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.engines.embedded.conftest import MakeLab
from tests.engines.embedded.lab import Lab, Outcome

pytestmark = pytest.mark.slow


@dataclass(frozen=True, kw_only=True)
class Phase:
    """One run.

    Attributes:
        program: The program's body; None keeps the previous one.
        does: The expected operations without `same`, in the order in which they end; a set if any order is correct.
        run: The operation.
        fails: A part of the expected error; empty if the run succeeds.
        actual: What the provider reads, by resource name.
        mended: Whether operations with `fail` succeed.
    """

    does: list[str] | set[str]
    program: str | None = None
    run: str = "up"
    fails: str = ""
    actual: dict[str, Any] = field(default_factory=dict)
    mended: bool = False


FLAT = """
a = Thing("a", size={size})
b = Thing("b", size=a.twice)
pulumi.export("twice", b.twice)
"""
REPLACED = """
a = Thing("a", rep="{rep}", size=1{dbr})
b = Thing("b", Options(depends_on=[a]), size=a.twice)
c = Thing("c", rep=a.twice.apply(lambda n: f"{{n}}"), size=2)
d = Thing("d", rep=c.id)
e = Thing("e", size=5)
"""
REPLACED_WITH = """
a = Thing("a", rep="{rep}")
Thing("b", Options(deleted_with=a))
Thing("c", Options(replace_with=[a]))
"""
DELETED_WITH = """
a = Thing("a", Options(delete_before_replace=True), rep="{rep}")
Thing("b", Options(deleted_with=a))
"""
GROUPED = """
Group("{name}", Options(aliases=[{alias}]))
"""
CASES: dict[str, list[Phase]] = {
    "create, change, leave": [
        Phase(program=FLAT.format(size=1), run="preview", does={"create lab-dev", "create a", "create b"}),
        Phase(does=["create lab-dev", "create a", "create b"]),
        Phase(does=[]),
        Phase(program=FLAT.format(size=2), run="preview", does=["update a", "update b"]),
        Phase(does=["update a", "update b"]),
        Phase(program='pulumi.export("bye", 1)', run="preview", does=["delete b", "delete a"]),
        Phase(does=["delete b", "delete a"]),
        Phase(run="destroy", does=["delete lab-dev"]),
    ],
    "replace, creating first": [
        Phase(program=REPLACED.format(rep="1", dbr=""), does={"create lab-dev", *(f"create {n}" for n in "abcde")}),
        Phase(
            program=REPLACED.format(rep="2", dbr=""),
            run="preview",
            does={"create-replacement a", "replace a", "delete-replaced a", "update b"}
            | {f"{step} {name}" for step in ("create-replacement", "replace", "delete-replaced") for name in "cd"},
        ),
        Phase(does=["create-replacement a", "replace a", "delete-replaced a"]),
    ],
    "replace, deleting first": [
        Phase(
            program=REPLACED.format(rep="1", dbr=", dbr=True"),
            does={"create lab-dev", *(f"create {n}" for n in "abcde")},
        ),
        Phase(
            program=REPLACED.format(rep="2", dbr=", dbr=True"),
            does={f"{step} {name}" for step in ("create-replacement", "replace", "delete-replaced") for name in "acd"},
        ),
        Phase(does=[]),
    ],
    "replace by option": [
        Phase(
            program='Thing("a", rep="1")\nBlank("b", size=1, tag={"x": [1, 2]})',
            does={"create lab-dev", "create a", "create b"},
        ),
        Phase(
            program='Thing("a", Options(delete_before_replace=True), rep="2")\n'
            'Blank("b", Options(replace_on_changes=["tag.x[*]"]), size=2, tag={"x": [1, 3]})',
            does={
                *("delete-replaced a", "replace a", "create-replacement a"),
                *("create-replacement b", "replace b", "delete-replaced b"),
            },
        ),
        Phase(
            program='Thing("a", rep="2")\n'
            'Blank("b", Options(replace_on_changes=["tag.x[*]"]), size=3, tag={"x": [1, 3]})',
            does=["update b"],
        ),
    ],
    "replaced with another": [
        Phase(
            program=REPLACED_WITH.format(rep="1"),
            does={"create lab-dev", "create a", "create b", "create c"},
        ),
        Phase(
            program=REPLACED_WITH.format(rep="2"),
            does={f"{step} {name}" for step in ("create-replacement", "replace", "delete-replaced") for name in "abc"},
        ),
        Phase(program="", does={"delete a", "delete b", "delete c"}),
    ],
    "deleted with a resource that is deleted first": [
        Phase(program=DELETED_WITH.format(rep="1"), does={"create lab-dev", "create a", "create b"}),
        Phase(
            program=DELETED_WITH.format(rep="2"),
            does={f"{step} {name}" for step in ("create-replacement", "replace", "delete-replaced") for name in "ab"},
        ),
    ],
    "components and aliases": [
        Phase(
            program=GROUPED.format(name="old", alias=""),
            does=["create lab-dev", "create old", "create old-first", "create old-second"],
        ),
        Phase(
            program=GROUPED.format(name="new", alias='pulumi.Alias(name="old")'),
            run="preview",
            does=["update new-first", "update new-second"],
        ),
        Phase(does=["update new-first", "update new-second"]),
        Phase(program=GROUPED.format(name="new", alias=""), does=[]),
        Phase(
            program='g = pulumi.ComponentResource("lab:index:Outer", "outer")\n'
            'Group("new", Options(parent=g, aliases=[pulumi.Alias(parent=pulumi.ROOT_STACK_RESOURCE)]), note="hi")',
            does=["create outer", "update new"],
        ),
        Phase(
            run="destroy",
            does=["delete new-second", "delete new-first", "delete new", "delete outer", "delete lab-dev"],
        ),
    ],
    "protect": [
        Phase(
            program='a = Thing("a")\nb = Thing("b", Options(protect=True), size=a.twice)\nThing("c", rep="1")',
            does={"create lab-dev", "create a", "create b", "create c"},
        ),
        Phase(program="", fails="protect", does=["delete c"]),
        Phase(
            program='a = Thing("a")\nb = Thing("b", Options(protect=True), rep="2", size=a.twice)',
            fails="protect",
            does=[],
        ),
        Phase(run="destroy", fails="protect", does=[]),
        Phase(program='a = Thing("a")\nb = Thing("b", Options(protect=False), size=a.twice)', does=[]),
        Phase(program="", does=["delete b", "delete a"]),
    ],
    "ignore, retain, time out": [
        Phase(
            program='Thing("a", size=1, tags={"x": 1, "y": [1, 2]})\nThing("b", Options(retain_on_delete=True))\n'
            'Thing("c", Options(custom_timeouts=pulumi.CustomTimeouts(create="5m", delete="90s")))',
            does={"create lab-dev", "create a", "create b", "create c"},
        ),
        Phase(
            program='Thing("a", Options(ignore_changes=["size", "tags.x", "tags.y[0]"]), size=2, '
            'tags={"x": 2, "y": [5, 2]})',
            does={"delete b", "delete c"},
        ),
        Phase(
            program='Thing("a", Options(ignore_changes=["tags[\\"x\\"]", "absent"]), size=2, '
            'tags={"x": 2, "y": [1, 2]})',
            does=["update a"],
        ),
    ],
    "secrets": [
        Phase(
            program="""
a = Thing("a", Options(additional_secret_outputs=["token"]), key=Output.secret("k"),
          deep={"in": Output.secret(1), "out": 2}, many=[Output.secret("x"), "y"])
b = Thing("b", size=a.twice, key=a.token)
pulumi.export("token", a.token)
pulumi.export("key", b.key)
pulumi.export("open", b.twice)
pulumi.export("mixed", {"s": Output.secret("s"), "n": None, "f": 1.5, "i": 3, "l": [True, "<&>"]})
""",
            does=["create lab-dev", "create a", "create b"],
        ),
        Phase(does=[]),
        Phase(run="refresh", does=[]),
        Phase(does=[]),
    ],
    "check failure": [
        Phase(
            program='a = Thing("a", size=1)\nThing("b", Options(depends_on=[a]), size=-1)',
            fails="must not be negative",
            does=["create lab-dev", "create a"],
        ),
        Phase(program='a = Thing("a", size=1)\nThing("b", Options(depends_on=[a]), size=1)', does=["create b"]),
    ],
    "failure in the middle": [
        Phase(program=FLAT.format(size=1), does=["create lab-dev", "create a", "create b"]),
        Phase(
            program='a = Thing("a", size=2)\nc = Thing("c", Options(depends_on=[a]), fail="create")\n'
            'd = Thing("d", Options(depends_on=[c]))\npulumi.export("more", d.twice)',
            fails="no create today",
            does=["update a"],
        ),
        Phase(mended=True, does=["create c", "create d", "delete b"]),
        Phase(
            program='a = Thing("a", size=2)\nc = Thing("c", Options(depends_on=[a]), fail="update", size=7)\n'
            'd = Thing("d", Options(depends_on=[c]))\npulumi.export("more", d.twice)',
            fails="no update today",
            does=[],
        ),
        Phase(
            program='a = Thing("a", size=2, fail="delete")\nc = Thing("c", Options(depends_on=[a]))\n',
            does=["update a", "delete d"],
        ),
        Phase(program="", fails="no delete today", does=["delete c"]),
        Phase(mended=True, does=["delete a"]),
    ],
    "failed replacement": [
        Phase(program='a = Thing("a", rep="1")', does=["create lab-dev", "create a"]),
        Phase(
            program='a = Thing("a", rep="2", dbr=True, fail="create")',
            fails="no create today",
            does=["delete-replaced a", "replace a"],
        ),
        Phase(mended=True, does=["replace a", "create-replacement a"]),
        Phase(
            program='a = Thing("a", rep="3", fail="delete")',
            does=["create-replacement a", "replace a", "delete-replaced a"],
        ),
        Phase(program='a = Thing("a", rep="4")', fails="no delete today", does=["create-replacement a", "replace a"]),
        Phase(mended=True, does=["delete-replaced a"]),
    ],
    "refresh": [
        Phase(
            program='a = Thing("a", size=1)\nb = Thing("b", size=a.twice)\nc = Thing("c", Options(depends_on=[b]))',
            does=["create lab-dev", "create a", "create b", "create c"],
        ),
        Phase(run="refresh", actual={"a": {"size": 9}, "b": None}, does={"update a", "delete b"}),
        Phase(run="preview", does=["update a", "create b"]),
        Phase(does=["update a", "create b"]),
    ],
    "a program that fails": [
        Phase(program=FLAT.format(size=1), does=["create lab-dev", "create a", "create b"]),
        Phase(
            program='c = Thing("c")\npulumi.export("new", 1)\nraise ValueError("the program is wrong")',
            fails="the program is wrong",
            does=["create c"],
        ),
        Phase(program='c = Thing("c")\nc.twice.apply(lambda n: 1 / (n or 0))', fails="division", does=[]),
    ],
}


@pytest.mark.parametrize("case", CASES)
def test_embedded(lab: Lab, case: str) -> None:
    for phase in CASES[case]:
        _check(phase, _run(lab, phase, cli=False))


@pytest.mark.cli
@pytest.mark.parametrize("case", CASES)
def test_both(make_lab: MakeLab, case: str) -> None:
    ours, theirs = make_lab(), make_lab()
    for number, phase in enumerate(CASES[case]):
        mine = _run(ours, phase, cli=False)
        _check(phase, mine)
        _compare(f"phase {number}", phase, mine, _run(theirs, phase, cli=True))
    # Each engine continues with the other's state, and plans the same.
    by_cli, by_embedded = ours.cli("preview"), theirs.embedded("preview")
    assert by_cli.steps == _planned(by_embedded)
    assert by_cli.calls == by_embedded.calls


def _run(lab: Lab, phase: Phase, *, cli: bool) -> Outcome:
    if phase.program is not None:
        lab.program(phase.program)
    lab.actual = phase.actual
    mark = lab.home / "mended"
    mark.touch() if phase.mended else mark.unlink(missing_ok=True)
    return lab.cli(phase.run) if cli else lab.embedded(phase.run)


def _check(phase: Phase, outcome: Outcome) -> None:
    assert outcome.failed == bool(phase.fails), outcome.message
    assert phase.fails in outcome.message
    if isinstance(phase.does, list):
        assert outcome.ended == phase.does
    else:
        assert outcome.steps == sorted(phase.does)


def _compare(where: str, phase: Phase, ours: Outcome, theirs: Outcome) -> None:
    assert theirs.failed == ours.failed, f"{where}: {ours.message} / {theirs.message}"
    assert phase.fails in theirs.message, where
    assert ours.calls == theirs.calls, where
    if phase.run == "preview":
        assert _planned(ours) == theirs.steps, where
    elif phase.run != "refresh":  # in the CLI, each step of a refresh is named `refresh`
        assert ours.steps == theirs.steps, where
    assert ours.state == theirs.state, where
    assert ours.outputs == theirs.outputs, where


def _planned(outcome: Outcome) -> list[str]:
    """Return the steps of a preview as in the CLI's document, where a replacement is one step."""
    return [step for step in outcome.steps if not step.startswith(("create-replacement", "delete-replaced"))]
