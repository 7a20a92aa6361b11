"""The AWS stacks as they are declared, each once for all tests."""

import pytest

from tests.support.declared import Declared, declared


@pytest.fixture(scope="session")
def production() -> Declared:
    return declared("production")


@pytest.fixture(scope="session")
def staging() -> Declared:
    return declared("staging")


@pytest.fixture(scope="session", params=["staging", "production"])
def stack(request: pytest.FixtureRequest) -> Declared:
    """Both of them, one after the other."""
    found: Declared = request.getfixturevalue(request.param)
    return found
