"""Silences that are refused before a request to Alertmanager."""

from __future__ import annotations

import pytest

from observatory.platforms.alertmanager import Alertmanager, SilenceRefusedError


@pytest.mark.parametrize("alert", [None, ""])
def test_a_whole_stack_cannot_be_silenced(alert: str | None) -> None:
    alertmanager = Alertmanager(url="http://127.0.0.1:1", stack="local")
    with pytest.raises(SilenceRefusedError, match="a whole stack cannot be silenced"):
        alertmanager.silence(fleet=None, alert=alert, seconds=60, created_by="me", reason="r")
