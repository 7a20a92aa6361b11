"""Commands of both engines, one of them killed, end in a stack that works; `make prove PROOF=sequences` draws more."""

from __future__ import annotations

import pytest

from tests.support.checkout import Checkout
from tests.support.sequences import Life

STEPS = ("up embedded", "pulumi refresh", "killed pulumi up", "pulumi destroy")


@pytest.mark.cli
@pytest.mark.timeout(1200)
def test_a_stack_survives_both_engines_a_kill_and_a_destroy(checkout: Checkout) -> None:
    broken = Life(checkout=checkout, seed=1).run(STEPS).broken
    assert not broken, "\n".join(broken)
