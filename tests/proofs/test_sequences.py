"""When the commands of a random sequence are killed: at a share of what they take here."""

from __future__ import annotations

import pytest

from tests.support.sequences import COMMANDS, KILLED, TYPICAL, Durations


def test_a_command_that_was_not_measured_is_as_slow_as_the_machine() -> None:
    durations = Durations()
    assert durations.expected("down", running=True) == TYPICAL["down"][True]
    durations.note("up embedded", 2 * TYPICAL["up embedded"][False], running=False)
    assert durations.expected("pulumi up", running=True) == 2 * TYPICAL["pulumi up"][True]


def test_what_was_measured_counts_for_the_same_state_of_the_stack() -> None:
    durations = Durations()
    durations.note("up cli", 100.0, running=False)
    durations.note("up cli", 7.0, running=True)
    assert (durations.expected("up cli", running=False), durations.expected("up cli", running=True)) == (100.0, 7.0)


@pytest.mark.parametrize("name", KILLED)
def test_every_killed_command_has_a_typical_duration(name: str) -> None:
    command = name.removeprefix("killed ")
    assert command in COMMANDS
    assert min(TYPICAL[command]) > 0
