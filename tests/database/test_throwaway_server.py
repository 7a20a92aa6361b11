"""A temporary server reports why it does not start; `test_planning` uses one that does."""

import pytest

from observatory.database import Installation, UnreachableError, throwaway_server


def test_a_server_that_does_not_start_reports_the_cause() -> None:
    installation = Installation(programs="/bin", wrap=lambda command, _: ["false", *command])

    with (
        pytest.raises(UnreachableError, match="initdb of the throwaway server failed"),
        throwaway_server(installation, edition="apache"),
    ):
        pass
