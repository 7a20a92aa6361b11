"""SCRAM verifiers: characters of the password. `test_bootstrap` logs in with one."""

import pytest

from observatory.database import scram_verifier


@pytest.mark.parametrize("password", ["", "pässword", "line\nbreak"])
def test_a_password_with_other_characters_is_refused(password: str) -> None:
    with pytest.raises(ValueError, match="printable ASCII"):
        scram_verifier(password)
