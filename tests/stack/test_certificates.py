"""Every certificate of a running stack is renewed without closing a connection."""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import struct
import time
from collections.abc import Iterator
from http.client import HTTPConnection, HTTPSConnection

import psycopg
from cryptography import x509

from tests.stack.test_faults import EMBEDDED
from tests.stack.test_monitoring import Monitoring, wait
from tests.support.checkout import Checkout

RENEW = "AUTHORITY_DAYS, CERTIFICATE_DAYS, RENEW_DAYS = 3650, 90, 30"
SSL_REQUEST = struct.pack("!II", 8, 80877103)  # of PostgreSQL's protocol
SERVERS = {
    "service_tls": "balancer",
    "postgres": "postgres",
    "pgbouncer": "pgbouncer",
    "etcd_client": "etcd",
    **dict.fromkeys(
        (
            *("balancer_stats", "prometheus", "alertmanager", "alert_receiver", "rollback_webhook"),
            *("node_exporter", "redis_exporter", "pgbouncer_exporter", "postgres_exporter", "pgbackrest_exporter"),
        ),
        "monitoring",
    ),
}
STATEFUL = ("etcd", "patroni", "postgresql", "pgbouncer", "valkey", "haproxy", "prometheus", "alertmanager")


def served(stack: Checkout, port: str) -> int:
    """Return the serial number of the certificate that a listener shows to a new connection."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with socket.create_connection(("127.0.0.1", stack.ports()[port]), timeout=60) as connection:
        if SERVERS[port] in ("postgres", "pgbouncer"):
            connection.sendall(SSL_REQUEST)
            assert connection.recv(1) == b"S"
        with context.wrap_socket(connection) as secured:
            shown = secured.getpeercert(binary_form=True)
    assert shown
    return x509.load_der_x509_certificate(shown).serial_number


def on_disk(stack: Checkout, name: str) -> int:
    (file,) = (file for file in (stack.home / "etc/tls").glob(f"{name}.*") if file.suffix in (".crt", ".pem"))
    return x509.load_pem_x509_certificate(file.read_bytes()).serial_number


@contextlib.contextmanager
def everything_due(stack: Checkout) -> Iterator[None]:
    """Let every certificate be in the time of its renewal during the block."""
    file = stack.root / "observatory/security/certificates.py"
    text = file.read_text()
    assert RENEW in text
    file.write_text(text.replace(RENEW, RENEW.replace("90, 30", "90, 365")))
    try:
        yield
    finally:
        file.write_text(text)


@contextlib.contextmanager
def kept_alive(stack: Checkout) -> Iterator[list[HTTPConnection]]:
    """Yield open connections to the balancer, over TLS and plain."""
    ports = stack.ports()
    connections = [
        HTTPSConnection("127.0.0.1", ports["service_tls"], timeout=60, context=stack.trusted()),
        HTTPConnection("127.0.0.1", ports["service"], timeout=60),
    ]
    for connection in connections:
        request(connection)
    yield connections
    for connection in connections:
        connection.close()


def request(connection: HTTPConnection) -> None:
    connection.request("GET", "/health/live")
    answer = connection.getresponse()
    answer.read()
    assert answer.status == 200


def renew(stack: Checkout, connections: list[HTTPConnection]) -> list[str]:
    """Renew the certificates, and use the connections meanwhile: the balancer closes one that is idle for a minute."""
    process = stack.start("certificates", "renew", "--output", "json")
    while process.poll() is None:
        for connection in connections:
            request(connection)
        time.sleep(1)
    out, err = process.communicate()
    assert process.returncode == 0, err
    return list(json.loads(out)["renewed"])


def pids(stack: Checkout) -> dict[str, int]:
    return {each["name"]: each["pid"] for each in stack.well_status()["daemons"] if each["name"] in STATEFUL}


def test_every_certificate_is_renewed_without_closing_a_connection(stack: Checkout) -> None:
    assert stack.json("certificates", "renew")["renewed"] == []
    before, processes = {port: served(stack, port) for port in SERVERS}, pids(stack)
    assert before == {port: on_disk(stack, name) for port, name in SERVERS.items()}
    url = stack.output("database_url")
    with kept_alive(stack) as connections, psycopg.connect(url, autocommit=True) as pooled:
        sockets = [connection.sock for connection in connections]
        with everything_due(stack):
            renewed = renew(stack, connections)
        for connection in connections:
            request(connection)
        assert [connection.sock for connection in connections] == sockets
        assert pooled.execute("SELECT 1").fetchone() == (1,)
    assert set(renewed) == {"balancer", "etcd", "monitoring", "patroni", "pgbouncer", "postgres"}
    for port, name in SERVERS.items():
        wait(lambda port=port, name=name: served(stack, port) == on_disk(stack, name))  # type: ignore[misc]
        assert served(stack, port) != before[port]
    assert pids(stack) == processes
    with psycopg.connect(url) as verified:
        verified.execute("SELECT 1")
    assert set(stack.json("up", *EMBEDDED)["summary"]) == {"same"}


def test_days_left_are_in_status_and_metrics(stack: Checkout) -> None:
    listed = {each["name"]: each["days"] for each in stack.well_status()["certificates"]}
    assert listed.keys() == {"balancer", "ca", "etcd", "monitoring", "patroni", "pgbouncer", "postgres"}
    assert all(days > 60 for days in listed.values())
    query = "observatory_certificate_expiry_timestamp_seconds"
    wait(lambda: {each["name"] for each in Monitoring(stack).query(f'{query}{{stack="local"}}')} == listed.keys())


def test_a_renewal_that_would_change_more_is_refused(stack: Checkout) -> None:
    settings = (stack.root / "Pulumi.local.yaml").read_text()
    stack.configure(database={"pool_size": 7})
    try:
        with everything_due(stack):
            refused = stack.json("certificates", "renew", expect=3)["error"]["message"]
    finally:
        (stack.root / "Pulumi.local.yaml").write_text(settings)
    assert "update pgbouncer" in refused
    assert stack.json("certificates", "renew")["renewed"] == []
