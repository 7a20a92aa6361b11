"""Manifests of dumps that earlier versions have made."""

from __future__ import annotations

import json

import pytest

from observatory.backups.dump_manifest import Membership, Role


@pytest.mark.parametrize(("attributes", "inherit"), [("LOGIN", True), ("NOINHERIT LOGIN", False)])
def test_a_role_of_an_earlier_dump_has_the_options_of_a_plain_grant(attributes: str, inherit: bool) -> None:
    fields = {"name": "analyst", "attributes": attributes, "connection_limit": -1, "verifier": None, "settings": []}
    role = Role.model_validate_json(json.dumps({**fields, "member_of": ["pg_monitor"]}))
    assert role.valid_until is None
    assert role.member_of == (Membership(role="pg_monitor", admin=False, inherit=inherit, set=True),)
    assert Role.model_validate_json(role.model_dump_json()) == role
