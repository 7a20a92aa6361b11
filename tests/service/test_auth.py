import asyncio
from collections.abc import Callable

import httpx
import pytest

from service.storage_service import auth
from service.storage_service.auth import Authenticator
from service.storage_service.database import Database
from service.storage_service.problems import Forbidden, Unauthorized
from service.storage_service.settings import Settings
from tests.service.harness import Service, StorageDatabase, environment, item, post

MakeKey = Callable[[StorageDatabase], str]


@pytest.mark.parametrize(
    "authorization",
    [None, "", "Bearer", "Basic dXNlcjpwYXNz", "nonsense"],
)
def test_request_without_a_key_gets_a_challenge(service: Service, authorization: str | None) -> None:
    headers = {} if authorization is None else {"Authorization": authorization}
    answer = httpx.post(f"http://127.0.0.1:{service.port}/v1/traces", json={"items": []}, headers=headers)
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == 'Bearer realm="observatory"'


@pytest.mark.parametrize(
    "make",
    [
        lambda _database: "made-up",
        lambda _database: "ünknown".encode().decode("latin-1"),
        lambda database: database.add_key(active=False),
        lambda database: database.add_key(expires="-1 second"),
    ],
    ids=["unknown", "not ascii", "inactive", "expired"],
)
def test_invalid_key_is_rejected(service: Service, database: StorageDatabase, make: MakeKey) -> None:
    with httpx.Client(base_url=f"http://127.0.0.1:{service.port}") as client:
        authorization = f"Bearer {make(database)}".encode("latin-1")
        answer = client.get("/v1/traces", headers={b"Authorization": authorization})
    assert answer.status_code == 401
    assert 'error="invalid_token"' in answer.headers["www-authenticate"]


@pytest.mark.parametrize("scheme", ["Bearer", "bearer"])
def test_valid_key_is_accepted(service: Service, database: StorageDatabase, scheme: str) -> None:
    key = database.add_key(expires="1 hour")
    with httpx.Client(base_url=f"http://127.0.0.1:{service.port}") as client:
        assert client.get("/v1/traces", headers={"Authorization": f"{scheme} {key}"}).status_code == 200


@pytest.mark.parametrize("scopes", ["{read}", "{}", None])
def test_key_without_the_scope_cannot_write(service: Service, database: StorageDatabase, scopes: str | None) -> None:
    answer = post(service.client(key=database.add_key(scopes=scopes)), item())
    assert answer.status_code == 403
    assert answer.headers["www-authenticate"].endswith('error="insufficient_scope", scope="write"')


def test_key_without_the_scope_cannot_read(service: Service, database: StorageDatabase) -> None:
    client = service.client(key=database.add_key(scopes="{write}"))
    assert client.get("/v1/traces").status_code == 403
    assert client.get("/v1/traces/x").status_code == 403
    assert post(client, item()).status_code == 201


def test_key_is_checked_before_the_body(service: Service) -> None:
    with httpx.Client(base_url=f"http://127.0.0.1:{service.port}") as client:
        assert client.post("/v1/traces", content=b"not json").status_code == 401


def test_revoked_key_is_rejected_after_its_cache_entry_expires(
    database: StorageDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auth, "CACHE_SECONDS", 0)
    key = database.add_key()

    async def use_and_revoke() -> None:
        connections = Database(Settings.from_environment(environment(database, 8000, {})))
        await connections.open()
        try:
            authenticator = Authenticator(connections)
            (await authenticator.authenticate(f"Bearer {key}")).require("write")
            database.execute("UPDATE api_keys SET is_active = false WHERE key_prefix = %s", key[:8])
            with pytest.raises(Unauthorized):
                await authenticator.authenticate(f"Bearer {key}")
        finally:
            await connections.close()

    asyncio.run(use_and_revoke())


def test_cache_of_keys_is_limited(database: StorageDatabase, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auth, "CACHE_SIZE", 3)

    async def flood() -> int:
        connections = Database(Settings.from_environment(environment(database, 8000, {})))
        await connections.open()
        try:
            authenticator = Authenticator(connections)
            for number in range(10):
                with pytest.raises(Unauthorized):
                    await authenticator.authenticate(f"Bearer made-up-{number}")
            return len(authenticator._cached)
        finally:
            await connections.close()

    assert asyncio.run(flood()) <= 3


def test_missing_scope_is_named() -> None:
    with pytest.raises(Forbidden, match="lacks the scope 'write'"):
        auth.ApiKey(id="1", scopes=["read"], rate_limit_rpm=60).require("write")
