"""The stack's own authority: a real TLS client accepts its certificates and no others."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from components.certificates import CertificateProvider
from observatory.security import certificates
from observatory.security.certificates import KeyPair, issue, make_authority, renewal_is_due, validities

AUTHORITY = make_authority("test")


def accepted(tmp_path: Path, pair: KeyPair) -> bool:
    """Tell whether a real server that wants a client's certificate accepts `pair`."""
    host = issue(AUTHORITY, name="server", hosts=["localhost"])
    for name, file in (("server", host), ("client", pair)):
        (tmp_path / name).write_text(file.certificate + file.key)
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cadata=AUTHORITY.certificate)
    server.verify_mode = ssl.CERT_REQUIRED
    server.load_cert_chain(tmp_path / "server")
    client = ssl.create_default_context(cadata=AUTHORITY.certificate)
    client.load_cert_chain(tmp_path / "client")
    ours, theirs = socket.socketpair()

    def connect() -> None:
        with contextlib.suppress(OSError), client.wrap_socket(ours, server_hostname="localhost") as connection:
            connection.recv(1)

    connecting = threading.Thread(target=connect)
    connecting.start()
    try:
        server.wrap_socket(theirs, server_side=True).close()
    except ssl.SSLCertVerificationError:
        return False
    else:
        return True
    finally:
        theirs.close()
        connecting.join()
        ours.close()


def handshake(tmp_path: Path, pair: KeyPair, *, trusted: KeyPair, host: str) -> str:
    """Shake hands with a real server that shows `pair`; return the protocol's version."""
    (tmp_path / "crt").write_text(pair.certificate)
    (tmp_path / "key").write_text(pair.key)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(tmp_path / "crt", tmp_path / "key")
    client = ssl.create_default_context(cadata=trusted.certificate)
    ours, theirs = socket.socketpair()

    def serve() -> None:
        try:
            server.wrap_socket(theirs, server_side=True).close()
        except (ssl.SSLError, OSError):
            theirs.close()

    serving = threading.Thread(target=serve)
    serving.start()
    try:
        with client.wrap_socket(ours, server_hostname=host) as connection:
            return str(connection.version())
    finally:
        ours.close()
        serving.join()


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_client_accepts_the_certificate_for_its_hosts(tmp_path: Path, host: str) -> None:
    pair = issue(AUTHORITY, name="server", hosts=["127.0.0.1", "localhost"])
    assert handshake(tmp_path, pair, trusted=AUTHORITY, host=host) == "TLSv1.3"


def test_a_server_accepts_only_a_clients_certificate(tmp_path: Path) -> None:
    assert accepted(tmp_path, issue(AUTHORITY, name="client", hosts=["localhost"], client=True))
    assert not accepted(tmp_path, issue(AUTHORITY, name="client", hosts=["localhost"]))


def test_a_client_refuses_another_host(tmp_path: Path) -> None:
    pair = issue(AUTHORITY, name="server", hosts=["localhost"])
    with pytest.raises(ssl.SSLCertVerificationError, match="mismatch"):
        handshake(tmp_path, pair, trusted=AUTHORITY, host="127.0.0.1")


def test_a_client_refuses_another_authority(tmp_path: Path) -> None:
    pair = issue(make_authority("other"), name="server", hosts=["localhost"])
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(tmp_path, pair, trusted=AUTHORITY, host="localhost")


def test_a_client_refuses_an_expired_certificate(tmp_path: Path) -> None:
    pair = issue(AUTHORITY, name="server", hosts=["localhost"], days=0)
    with pytest.raises(ssl.SSLCertVerificationError, match="expired"):
        handshake(tmp_path, pair, trusted=AUTHORITY, host="localhost")


def test_renewal_is_due_in_the_last_30_days() -> None:
    pair = issue(AUTHORITY, name="server", hosts=["localhost"], days=90)
    assert not renewal_is_due(pair.certificate, now=datetime.now(UTC) + timedelta(days=59))
    assert renewal_is_due(pair.certificate, now=datetime.now(UTC) + timedelta(days=61))
    assert renewal_is_due(pair.certificate, now=datetime.now(UTC) + timedelta(days=100))


def properties(days: int) -> dict[str, object]:
    pair = issue(AUTHORITY, name="server", hosts=["localhost"], days=days)
    return {
        "common_name": "server",
        "hosts": ["localhost"],
        "client": False,
        "authority_certificate": AUTHORITY.certificate,
        "authority_key": AUTHORITY.key,
        "certificate": pair.certificate,
        "key": pair.key,
    }


def test_up_renews_a_certificate_that_expires_soon() -> None:
    provider, near, fresh = CertificateProvider(), properties(20), properties(90)
    assert provider.diff("server", near, near).changes
    assert not provider.diff("server", fresh, fresh).changes
    renewed = provider.update("server", near, near).outs
    assert renewed is not None
    assert not renewal_is_due(str(renewed["certificate"]))


def test_a_certificate_is_replaced_for_another_authority_host_or_purpose() -> None:
    fresh = properties(90)
    for change in ({"hosts": ["db"]}, {"client": True}, {"authority_certificate": make_authority("new").certificate}):
        assert CertificateProvider().diff("server", fresh, {**fresh, **change}).changes


def test_no_certificate_outlives_its_authority(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(certificates, "AUTHORITY_DAYS", 10)
    authority = make_authority("old")
    (tmp_path / "ca.crt").write_text(authority.certificate)
    (tmp_path / "server.pem").write_text(issue(authority, name="server", hosts=["localhost"]).combined)
    (tmp_path / "server.key").write_text("not a certificate")
    server, old = validities(tmp_path)
    assert (server.name, server.days, server.due, server.expiring) == ("server", 9, True, True)
    assert (old.name, old.days, old.due, old.expiring) == ("ca", 9, False, True)
    assert server.ends == old.ends


@pytest.mark.parametrize(
    ("days", "due", "expiring"), [(0, True, True), (20, True, True), (25, True, False), (60, False, False)]
)
def test_a_certificate_is_renewed_before_it_is_reported(tmp_path: Path, days: int, due: bool, expiring: bool) -> None:
    (tmp_path / "server.crt").write_text(issue(AUTHORITY, name="server", hosts=["localhost"], days=days).certificate)
    (found,) = validities(tmp_path)
    assert (found.due, found.expiring) == (due, expiring)
