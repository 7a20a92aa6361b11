"""API keys: stored as hashes, active, expired and revoked."""

import hashlib

import psycopg
import pytest

from observatory.database import StatementFailedError, api_key_is_active, create_api_key, revoke_api_key
from tests.database.conftest import SHIPPED, Deploy


@pytest.fixture
def migrated(conninfo: str, run_deploy: Deploy) -> str:
    run_deploy(migrations=SHIPPED, target=3)
    return conninfo


def rows(conninfo: str) -> list[tuple[object, ...]]:
    with psycopg.connect(conninfo) as connection:
        query = "SELECT key_hash, key_prefix, name, scopes, rate_limit_rpm, is_active FROM api_keys"
        return connection.execute(query).fetchall()


def test_a_key_is_stored_as_its_hash_only(migrated: str) -> None:
    key = create_api_key(migrated, name="first", scopes=["traces:write"], rate_limit_rpm=120)

    assert len(key) == len("obs_") + 43
    digest = hashlib.sha256(key.encode()).hexdigest()
    assert rows(migrated) == [(digest, key[:12], "first", ["traces:write"], 120, True)]


def test_keys_differ(migrated: str) -> None:
    assert create_api_key(migrated, name="a", scopes=[]) != create_api_key(migrated, name="a", scopes=[])


def test_registering_a_key_again_changes_nothing(migrated: str) -> None:
    key = create_api_key(migrated, name="first", scopes=["traces:read"])
    before = rows(migrated)

    assert create_api_key(migrated, name="other", scopes=[], key=key) == key
    assert rows(migrated) == before


def test_a_revoked_key_is_not_active_and_stays_revoked(migrated: str) -> None:
    key = create_api_key(migrated, name="first", scopes=[])
    assert api_key_is_active(migrated, key=key)

    assert revoke_api_key(migrated, key=key)
    create_api_key(migrated, name="first", scopes=[], key=key)

    assert not api_key_is_active(migrated, key=key)


def test_an_expired_key_is_not_active(migrated: str) -> None:
    key = create_api_key(migrated, name="first", scopes=[])
    with psycopg.connect(migrated) as connection:
        connection.execute("UPDATE api_keys SET expires_at = now() - interval '1 second'")

    assert not api_key_is_active(migrated, key=key)


def test_revoking_an_unknown_key_returns_false(migrated: str) -> None:
    assert not revoke_api_key(migrated, key="obs_unknown")


def test_a_key_without_the_table_is_a_readable_error(conninfo: str) -> None:
    with pytest.raises(StatementFailedError, match='API key "first": relation "api_keys" does not exist'):
        create_api_key(conninfo, name="first", scopes=[])
