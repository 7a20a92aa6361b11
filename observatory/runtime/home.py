"""Which stack and state a home belongs to, so that no other one takes its daemons and data.

Two files of the home say it: the full name of the stack, and whether the stack's state has the machine. The second
exists from the first daemon, which is created after the machine is in the state, until the machine is deleted. Without
it, daemons that run were left by a killed command, and the next `up` adopts them.
"""

from __future__ import annotations

from pathlib import Path

from observatory.errors import REFUSED
from observatory.runtime.errors import RuntimeFault
from observatory.runtime.sandbox import Sandbox

STACK_FILE = "/srv/stack"
IN_STATE = "/srv/in-state"
OTHER_STACK = (
    "{home} is the home of the stack {owner}, and this state is of {stack}, which has no machine yet. Nothing was "
    "changed"
)
OTHER_STATE = "the daemons in {home} run, and the state has no machine: it is empty or another one. Nothing was changed"


MOVED = (
    "the home of the stack is {old} in its state, and {new} in the program. The data stays in {old}: in another home, "
    "`up` would create an empty database. Nothing was changed"
)
MOVED_REMEDY = (
    "After `pulumi stack rename`, rename the stack back. In a copy of a checkout, use the original, or remove the "
    ".observatory directory of the copy."
)


class HomeError(RuntimeFault):
    """A home belongs to another stack or another state; nothing was changed."""

    exit_code = REFUSED


def claim(sandbox: Sandbox, stack: str) -> None:
    """Record that the home belongs to the stack with this full name, such as `project/local`."""
    sandbox.write_file(STACK_FILE, f"{stack}\n")


def set_in_state(sandbox: Sandbox, *, in_state: bool) -> None:
    """Record whether the stack's state has the machine."""
    if in_state:
        sandbox.write_file(IN_STATE, "")
    else:
        sandbox.remove_file(IN_STATE)


def check_not_moved(old: Path, new: Path) -> None:
    """Check that the home of a state is that of the program, or that it is gone with its data.

    Raises:
        HomeError: it has the data.
    """
    if old.resolve() != new.resolve() and (old / "data").is_dir():
        raise HomeError(MOVED.format(old=old, new=new), remedy=MOVED_REMEDY)


def check_unclaimed(sandbox: Sandbox, stack: str) -> None:
    """Check that a state without a machine may use the home.

    Raises:
        HomeError: it is another stack's, or its daemons are in another state.
    """
    file = sandbox.host_path(STACK_FILE)
    owner = file.read_text().strip() if file.is_file() else stack
    if owner != stack:
        raise HomeError(
            OTHER_STACK.format(home=sandbox.home, owner=owner, stack=stack),
            remedy=f"Name project and stack as before, so that the engine finds the state of {owner}; or remove that "
            "stack with its data: `observatory down`.",
        )
    if sandbox.host_path(IN_STATE).exists() and sandbox.alive():
        raise HomeError(
            OTHER_STATE.format(home=sandbox.home),
            remedy="Restore the state of the running stack: its file, and the copy before the last change (.bak), are "
            "below .observatory/backend/.pulumi/stacks; remove an empty .json beside a .json.gz. Or stop the stack by "
            "`observatory down --keep-data`; then `observatory up` continues with the data. `observatory down` removes "
            "the data.",
        )
