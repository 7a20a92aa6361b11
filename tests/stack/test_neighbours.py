"""Another local user gets nothing from a running stack; `make prove PROOF=neighbours` does it at length."""

from __future__ import annotations

import os

import pytest

from proofs.neighbours import Neighbourhood
from tests.support.checkout import Checkout


def test_every_listener_is_in_the_list_and_on_loopback(stack: Checkout) -> None:
    assert list(Neighbourhood(stack).unlisted()) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_another_user_gets_no_secret_and_reaches_no_file_or_process(stack: Checkout) -> None:
    neighbourhood = Neighbourhood(stack)
    secrets = set(neighbourhood.secrets())
    found = neighbourhood.attack(1, requests=5)
    assert len(secrets) > 10
    assert found.requests == 5 * len(neighbourhood.ports)
    assert found.broken == ()
    assert not [secret for secret in secrets if secret.encode() in found.answers]
