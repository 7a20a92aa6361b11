"""Secrets that the program generates: passwords, and the first API key of a stack.

The types keep the module `local`, because it is part of every state.
"""

from __future__ import annotations

import secrets
from typing import Any

import pulumi
from pulumi.dynamic import CreateResult, DiffResult, ReadResult, Resource, ResourceProvider, UpdateResult

from components.dynamic import without_provider

PASSWORD_BYTES = 24  # 192 bits, 32 characters of base64url


class PasswordProvider(ResourceProvider):
    """Generates a password once; it stays until the resource is replaced."""

    serialize_as_secret_always = False

    def create(self, props: dict[str, Any]) -> CreateResult:  # noqa: ARG002 - the interface's signature
        """Generate the password."""
        return CreateResult(id_=secrets.token_hex(8), outs={"value": secrets.token_urlsafe(PASSWORD_BYTES)})

    def diff(self, _id: str, _olds: dict[str, Any], _news: dict[str, Any]) -> DiffResult:
        """Report no change: a new password is a new resource."""
        return DiffResult(changes=False)


class Password(Resource, module="local", name="Password"):
    """A random password; `value` is secret."""

    value: pulumi.Output[str]

    def __init__(self, name: str, opts: pulumi.ResourceOptions | None = None) -> None:
        secret = pulumi.ResourceOptions(additional_secret_outputs=["value"])
        super().__init__(PasswordProvider(), name, {"value": None}, pulumi.ResourceOptions.merge(opts, secret))


class LoginPasswordProvider(ResourceProvider):
    """Generates a login's password, and a new one for each generation."""

    serialize_as_secret_always = False

    def create(self, props: dict[str, Any]) -> CreateResult:
        """Generate the password."""
        return CreateResult(id_=secrets.token_hex(8), outs=_generate(props))

    def diff(self, _id: str, _olds: dict[str, Any], _news: dict[str, Any]) -> DiffResult:
        """Compare the generations."""
        return DiffResult(changes=_olds.get("generation") != _news.get("generation"))

    def update(self, _id: str, _olds: dict[str, Any], _news: dict[str, Any]) -> UpdateResult:
        """Generate another one."""
        return UpdateResult(outs=_generate(_news))


class LoginPassword(Resource, module="access", name="LoginPassword"):
    """The password of a database login in a `generation`; `value` and its SCRAM `verifier` are secret."""

    value: pulumi.Output[str]
    verifier: pulumi.Output[str]

    def __init__(self, name: str, *, generation: int, opts: pulumi.ResourceOptions | None = None) -> None:
        props = {"generation": generation, "value": None, "verifier": None}
        secret = pulumi.ResourceOptions(additional_secret_outputs=["value", "verifier"])
        super().__init__(LoginPasswordProvider(), name, props, pulumi.ResourceOptions.merge(opts, secret))


def _generate(props: dict[str, Any]) -> dict[str, Any]:
    from observatory.database.roles.scram import scram_verifier  # noqa: PLC0415 - psycopg only where it is used

    value = secrets.token_urlsafe(PASSWORD_BYTES)
    return {"generation": props["generation"], "value": value, "verifier": scram_verifier(value)}


class ApiKeyProvider(ResourceProvider):
    """Issues a Bearer key for the service; the database stores only its digest."""

    serialize_as_secret_always = False

    def create(self, props: dict[str, Any]) -> CreateResult:
        """Issue the key."""
        from observatory.database import create_api_key  # noqa: PLC0415 - psycopg only where it is used

        key = create_api_key(
            props["conninfo"],
            name=props["key_name"],
            scopes=tuple(props["scopes"]),
            rate_limit_rpm=int(props["rate_limit_rpm"]),
        )
        return CreateResult(id_=props["key_name"], outs={**without_provider(props), "key": key})

    def diff(self, _id: str, _olds: dict[str, Any], _news: dict[str, Any]) -> DiffResult:
        """Issue another key when its name, scopes or limit change; keep it when only the connection changes."""
        replaces = [key for key in ("key_name", "scopes", "rate_limit_rpm") if _olds.get(key) != _news.get(key)]
        moved = _olds.get("conninfo") != _news.get("conninfo")
        return DiffResult(changes=moved or bool(replaces), replaces=replaces, delete_before_replace=True)

    def update(self, _id: str, _olds: dict[str, Any], _news: dict[str, Any]) -> UpdateResult:
        """Store the new connection."""
        return UpdateResult(outs={**without_provider(_news), "key": _olds["key"]})

    def read(self, id_: str, props: dict[str, Any]) -> ReadResult:
        """Report the key as deleted when the database does not have it."""
        from observatory.database import api_key_is_active  # noqa: PLC0415

        active = api_key_is_active(props["conninfo"], key=props["key"])
        return ReadResult(id_=id_ if active else None, outs=props if active else None)

    def delete(self, _id: str, _props: dict[str, Any]) -> None:
        """Revoke the key."""
        from observatory.database import revoke_api_key  # noqa: PLC0415

        revoke_api_key(_props["conninfo"], key=_props["key"])


class ApiKey(Resource, module="local", name="ApiKey"):
    """A Bearer key of the storage service; `key` is secret."""

    key: pulumi.Output[str]

    def __init__(
        self,
        name: str,
        *,
        conninfo: pulumi.Input[str],
        scopes: tuple[str, ...],
        rate_limit_rpm: int,
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        props = {
            "conninfo": conninfo,
            "key_name": name,
            "scopes": list(scopes),
            "rate_limit_rpm": rate_limit_rpm,
            "key": None,
        }
        secret = pulumi.ResourceOptions(additional_secret_outputs=["key"])
        super().__init__(ApiKeyProvider(), name, props, pulumi.ResourceOptions.merge(opts, secret))
