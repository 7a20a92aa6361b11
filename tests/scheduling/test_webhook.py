"""The endpoint for alerts that roll back: it refuses requests without the token, and reports failures."""

from __future__ import annotations

import contextlib
import http.client
import ssl
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest

from observatory.nodes.programs import alert_receiver
from observatory.runtime import Sandbox
from observatory.scheduling import webhook
from observatory.scheduling.webhook import BODY_BYTES, serve, token, token_drift
from tests.support.certificates import monitoring_certificate
from tests.support.waiting import PATIENCE_S

TOKEN = "sesame"


class Taker:
    """Takes alerts, or fails."""

    def __init__(self) -> None:
        self.got: list[Mapping[str, Any]] = []

    def __call__(self, notification: Mapping[str, Any]) -> str:
        self.got.append(notification)
        if "fail" in notification:
            raise OSError("no space left")
        return "proposed"


@pytest.fixture(autouse=True)
def _patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client on a busy machine may be late with the next part of its request."""
    monkeypatch.setattr(alert_receiver, "REQUEST_SECONDS", PATIENCE_S)  # of a handshake
    monkeypatch.setattr(webhook._Handler, "timeout", PATIENCE_S)


@pytest.fixture
def taker() -> Taker:
    return Taker()


@pytest.fixture
def endpoint(taker: Taker, tmp_path: Path) -> Iterator[httpx.Client]:
    client = monitoring_certificate(tmp_path)
    server = serve(0, lambda: TOKEN, taker, certificate=client.certificate, authority=client.authority)
    headers = {"Authorization": f"Bearer {TOKEN}"}
    trusted = ssl.create_default_context(cafile=str(client.authority))
    url = f"https://127.0.0.1:{server.server_port}"
    with httpx.Client(base_url=url, headers=headers, timeout=60, verify=trusted) as sender:
        yield sender
    server.shutdown()
    server.server_close()


def test_an_alert_is_handled(endpoint: httpx.Client, taker: Taker) -> None:
    answer = endpoint.post("/alerts", json={"alerts": []})
    assert (answer.status_code, answer.text) == (200, "proposed")
    assert taker.got == [{"alerts": []}]


@pytest.mark.parametrize("given", ["", "Bearer", "Bearer wrong", f"Basic {TOKEN}", TOKEN, "Bearer s\xe9same"])
def test_a_request_without_the_token_is_refused(endpoint: httpx.Client, taker: Taker, given: str) -> None:
    answer = endpoint.post("/alerts", json={"alerts": []}, headers=[(b"Authorization", given.encode("latin-1"))])
    assert answer.status_code == 401
    assert taker.got == []


def test_a_request_of_a_stranger_writes_no_log(endpoint: httpx.Client, capsys: pytest.CaptureFixture[str]) -> None:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    connection = http.client.HTTPSConnection("127.0.0.1", endpoint.base_url.port, timeout=60, context=context)
    with contextlib.closing(connection):
        connection.request("POST", "/alerts", headers={"Content-Length": "9" * 5000})
        assert connection.getresponse().status == 401
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/other", b"{}", 404),
        ("/alerts", b"", 413),
        ("/alerts", b"x" * (BODY_BYTES + 1), 413),
        ("/alerts", b"no json", 400),
        ("/alerts", b"[]", 400),
        ("/alerts", b"[" * 100_000, 400),
        ("/alerts", b'{"fail": true}', 500),
    ],
)
def test_an_invalid_or_failed_notification_gets_an_error_status(
    endpoint: httpx.Client, path: str, body: bytes, status: int
) -> None:
    try:
        answer = endpoint.post(path, content=body)
    except httpx.WriteError:  # refused before all of it was sent
        assert status == 413
    else:
        assert answer.status_code == status
    assert endpoint.post("/alerts", json={}).status_code == 200


def test_the_token_is_generated_once_and_only_daemons_read_it(tmp_path: Path, rootfs: Path) -> None:
    sandbox = Sandbox(tmp_path / "home", rootfs)
    first = token(sandbox, "/srv/etc/rollback-webhook/token")
    assert token(sandbox, "/srv/etc/rollback-webhook/token") == first
    assert len(first) > 40
    assert sandbox.host_path("/srv/etc/rollback-webhook/token").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("content", ["", "edited", "x" * 43 + "\n", "\udcff" * 43])
def test_an_edited_token_is_drift_and_is_generated_again(tmp_path: Path, rootfs: Path, content: str) -> None:
    sandbox, file = Sandbox(tmp_path / "home", rootfs), "/srv/etc/rollback-webhook/token"
    first = token(sandbox, file)
    assert token_drift(sandbox, file) == ()
    sandbox.host_path(file).write_bytes(content.encode("utf-8", "surrogateescape"))
    assert [str(each) for each in token_drift(sandbox, file)] == [f"{file} was changed"]
    again = token(sandbox, file)
    assert again not in (first, content)
    assert token_drift(sandbox, file) == ()


def test_a_token_that_was_replaced_is_in_force_at_once(tmp_path: Path, taker: Taker) -> None:
    current, client = [TOKEN], monitoring_certificate(tmp_path)
    server = serve(0, lambda: current[0], taker, certificate=client.certificate, authority=client.authority)
    trusted = ssl.create_default_context(cafile=str(client.authority))
    with httpx.Client(base_url=f"https://127.0.0.1:{server.server_port}", timeout=60, verify=trusted) as sender:
        for given, status in (("other", 401), (TOKEN, 200)):
            answer = sender.post("/alerts", json={"alerts": []}, headers={"Authorization": f"Bearer {given}"})
            assert answer.status_code == status
        current[0] = "other"
        answer = sender.post("/alerts", json={"alerts": []}, headers={"Authorization": "Bearer other"})
        assert answer.status_code == 200
    server.shutdown()
    server.server_close()
