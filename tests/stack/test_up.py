"""What a stack that is up promises."""

from __future__ import annotations

import base64
import json
import os
import re
import socket
import ssl
import stat
import time
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, LiteralString

import httpx
import psycopg
import pytest

from observatory.backups.pgbackrest import SWITCH
from observatory.database.connection import connect, with_database
from observatory.nodes import Paths
from observatory.nodes.pgbackrest import command
from observatory.runtime import Sandbox
from observatory.security.certificates import make_authority
from tests.support.checkout import Checkout
from tests.support.imports import HEAVY, run_watched
from tests.support.waiting import PATIENCE_S, until

OUTPUTS = {
    "service_url",
    "preview_url",
    "api_key",
    "database_url",
    "admin_database_url",
    "database_urls",
    "prometheus_url",
    "alertmanager_url",
    "console_url",
    "fleets",
    "active_fleet",
    "schema_version",
    "backup_stores",
    "ca_file",
}


def client(stack: Checkout, url: str = "service_url") -> httpx.Client:
    headers = {"Authorization": f"Bearer {stack.output('api_key')}"}
    return httpx.Client(base_url=stack.output(url), headers=headers, verify=stack.trusted())


LATE = "an instance to answer: on a busy machine it may be late for its health checks"


def answered(client: httpx.Client, path: str, fleet: str | None = None) -> httpx.Response:
    """Return the answer of an instance, once there is one."""
    found: list[httpx.Response] = []

    def is_there() -> bool:
        found[:] = [client.get(path, headers={"X-Observatory-Fleet": fleet} if fleet else {})]
        return found[0].status_code != httpx.codes.SERVICE_UNAVAILABLE

    until(is_there, LATE)
    return found[0].raise_for_status()


def admin(stack: Checkout) -> AbstractContextManager[psycopg.Connection[Any]]:
    return connect(with_database(stack.output("admin_database_url"), "observatory"), purpose="test")


def one(connection: psycopg.Connection[Any], query: LiteralString) -> Any:
    row = connection.execute(query).fetchone()
    assert row is not None
    return row[0]


def test_every_daemon_is_ready(stack: Checkout) -> None:
    status = stack.well_status()
    assert [daemon["name"] for daemon in status["daemons"]] == [
        "etcd",
        "patroni",
        "postgresql",
        "pgbouncer",
        "valkey",
        "storage-blue-1",
        "storage-green-1",
        "haproxy",
        "request-metrics",
        "node-exporter",
        "postgres-exporter",
        "collector",
        "pgbouncer-exporter",
        "pgbackrest-exporter",
        "redis-exporter",
        "alert-receiver",
        "alertmanager",
        "prometheus",
        "supervisor",
        "watcher",
        "guard",
        "scheduler",
        "console",
    ]
    assert {daemon["health"] for daemon in status["daemons"]} == {"ready"}
    assert all(Path(f"/proc/{daemon['pid']}").exists() for daemon in status["daemons"])
    assert "?" not in "".join(daemon["version"] for daemon in status["daemons"])


def test_a_second_up_changes_nothing(stack: Checkout) -> None:
    before = {daemon["name"]: daemon["pid"] for daemon in stack.well_status()["daemons"]}
    again = stack.json("up", "--engine", "embedded")
    assert set(again["summary"]) == {"same"}
    assert {daemon["name"]: daemon["pid"] for daemon in again["status"]["daemons"]} == before


def test_an_edited_provider_file_is_not_a_change(stack: Checkout) -> None:
    file = stack.root / "components/local/machine.py"
    original = file.read_text()
    file.write_text(
        original.replace('    """Bring the daemon to what', '    # A remark.\n    """Bring the daemon to what')
    )
    try:
        assert set(stack.json("preview", "--engine", "embedded")["summary"]) == {"same"}
    finally:
        file.write_text(original)


def test_outputs_are_whole_and_secrets_masked(stack: Checkout) -> None:
    masked = stack.json("outputs")
    assert set(masked) == OUTPUTS
    assert masked["api_key"] == masked["database_url"] == "[secret]"
    assert masked["fleets"] == {
        "blue": {"version": "v0.1.0", "size": 1, "weight": 100},
        "green": {"version": "v0.1.0", "size": 1, "weight": 0},
    }


def test_the_table_of_outputs_shows_what_is_masked(stack: Checkout) -> None:
    assert re.search(r"^api_key +\[secret\] *$", stack.run("outputs").stdout, re.MULTILINE)


def test_an_unknown_output_is_refused_and_the_outputs_are_listed(stack: Checkout) -> None:
    assert "service_url" in stack.run("outputs", "servce_url", expect=2).stderr


def test_the_database_is_what_was_promised(stack: Checkout) -> None:
    with admin(stack) as connection:
        assert one(connection, "SHOW data_checksums") == "on"
        assert one(connection, "SHOW password_encryption") == "scram-sha-256"
        assert one(connection, "SHOW server_version_num").startswith("17")
        assert one(connection, "SELECT count(*) FROM pg_extension WHERE extname = 'pg_stat_statements'") == 1
        assert one(connection, "SELECT max(version) FROM observatory.schema_migrations") == 8
        assert one(connection, "SELECT count(*) FROM timescaledb_information.hypertables") == 8
        assert one(connection, "SELECT count(*) FROM cron.job WHERE username = 'migrator' AND active") == 14
        assert one(connection, "SELECT count(*) FROM cron.job_run_details") == 0  # each would be WAL
        assert one(connection, "SELECT seqcache FROM pg_sequence WHERE seqrelid = 'cron.runid_seq'::regclass") == 10_000


@pytest.mark.parametrize("user", ["postgres", "migrator"])
@pytest.mark.parametrize(
    ("door", "answer"), [("postgres", "no pg_hba.conf entry"), ("pgbouncer", "SASL authentication failed")]
)
def test_operators_cannot_log_in_over_tcp(stack: Checkout, user: str, door: str, answer: str) -> None:
    with pytest.raises(psycopg.OperationalError, match=re.escape(answer)):
        psycopg.connect(stack.output("database_url"), port=stack.ports()[door], user=user, password="guess")


def test_the_service_role_connects_through_the_pooler(stack: Checkout) -> None:
    url = stack.output("database_url")
    assert psycopg.conninfo.conninfo_to_dict(url)["port"] == str(stack.ports()["pgbouncer"])
    with psycopg.connect(url) as connection:
        assert one(connection, "SELECT current_user") in {"app_a", "app_b"}
        assert one(connection, "SELECT inet_server_addr() IS NULL") is True, "the pooler uses the socket"


HOST_PROCESSES = {"watcher", "guard", "scheduler", "console"}
CALLBACK = {"postgresql": {"callbacks": {"on_reload": "/bin/true"}}}  # Patroni runs it: it would be the daemons' user


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("PATCH", "/config", CALLBACK),
        ("PUT", "/config", CALLBACK),
        ("POST", "/reload", None),
        ("POST", "/restart", {}),
        ("POST", "/switchover", {"leader": "node1"}),
    ],
)
@pytest.mark.parametrize("login", [None, ("operator", "guess")], ids=["anonymous", "guess"])
def test_patroni_refuses_changes_without_a_password(
    stack: Checkout, login: tuple[str, str] | None, method: str, path: str, body: dict[str, Any] | None
) -> None:
    with httpx.Client(base_url=f"http://127.0.0.1:{stack.ports()['patroni']}", auth=login) as api:
        before = api.get("/config").json()
        assert api.request(method, path, json=body).status_code == 401
        assert api.get("/config").json() == before


def leader(stack: Checkout, certificate: str | None) -> httpx.Response:
    """Ask etcd who leads PostgreSQL, with one of the certificates that the stack's authority has signed."""
    trusted, tls = stack.trusted(), stack.home / "etc/tls"
    if certificate:
        trusted.load_cert_chain(tls / f"{certificate}.crt", tls / f"{certificate}.key")
    key = base64.b64encode(b"/service/observatory/leader").decode()
    url = f"https://127.0.0.1:{stack.ports()['etcd_client']}/v3/kv/range"
    return httpx.post(url, json={"key": key}, verify=trusted)


def test_etcd_answers_patroni(stack: Checkout) -> None:
    [found] = leader(stack, "patroni").raise_for_status().json()["kvs"]
    assert base64.b64decode(found["value"]) == b"node1"


@pytest.mark.parametrize(
    ("certificate", "alert"), [(None, "certificate required"), ("pgbouncer", "bad certificate")], ids=str
)
def test_etcd_refuses_clients_without_a_certificate(stack: Checkout, certificate: str | None, alert: str) -> None:
    with pytest.raises(httpx.TransportError, match=alert):
        leader(stack, certificate)


def test_etcds_open_port_serves_no_keys(stack: Checkout) -> None:
    with httpx.Client(base_url=f"http://127.0.0.1:{stack.ports()['etcd_metrics']}") as api:
        assert api.get("/metrics").status_code == 200
        assert api.post("/v3/kv/range", json={"key": "AA==", "range_end": "AA=="}).status_code == 404


@pytest.mark.parametrize("door", ["postgres", "pgbouncer"])
def test_the_database_is_reached_by_tls_alone(stack: Checkout, door: str) -> None:
    with pytest.raises(psycopg.OperationalError, match=r"no encryption|SSL required"):
        psycopg.connect(stack.output("database_url"), port=stack.ports()[door], sslmode="disable")


@pytest.mark.parametrize("door", ["postgres", "pgbouncer"])
def test_a_client_refuses_a_database_of_another_authority(stack: Checkout, door: str, tmp_path: Path) -> None:
    other = tmp_path / "ca.crt"
    other.write_text(make_authority("other").certificate)
    with pytest.raises(psycopg.OperationalError, match="certificate verify failed"):
        psycopg.connect(stack.output("database_url"), port=stack.ports()[door], sslrootcert=str(other))


def test_a_client_refuses_a_balancer_certificate_of_another_authority(stack: Checkout) -> None:
    other = ssl.create_default_context(cadata=make_authority("other").certificate)
    with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
        httpx.get(f"{stack.output('service_url')}/health/live", verify=other)


def test_the_service_speaks_tls_to_the_pooler_which_uses_the_socket(stack: Checkout) -> None:
    with pytest.raises(psycopg.OperationalError, match="SSL required"):
        psycopg.connect(stack.output("database_url"), sslmode="disable")
    with admin(stack) as connection:
        sessions = "SELECT count(*) FROM pg_stat_activity WHERE usename IN ('app_a', 'app_b')"
        with client(stack) as service:
            answered(service, "/v1/traces?limit=1")  # the pooler closes idle sessions
        assert one(connection, sessions) > 0
        assert one(connection, f"{sessions} AND client_addr IS NOT NULL") == 0


def test_wal_is_archived(stack: Checkout) -> None:
    with admin(stack) as connection:
        one(connection, "SELECT pg_logical_emit_message(true, 'test', 'a segment with content')")
        written = one(connection, SWITCH)
        deadline = time.monotonic() + 180  # PostgreSQL waits 60 s after three failed attempts
        while (one(connection, "SELECT last_archived_wal FROM pg_stat_archiver") or "") < written:
            assert time.monotonic() < deadline
            time.sleep(0.1)


def test_there_is_a_full_backup_in_each_repository_and_it_is_encrypted(stack: Checkout) -> None:
    done = sandbox(stack).run(command(Paths(), "info", "--output=json"))
    [stanza] = json.loads(done.stdout)
    assert stanza["status"]["message"] == "ok"
    assert {each["database"]["repo-key"] for each in stanza["backup"] if each["type"] == "full"} == {1, 2}
    for store in stack.json("outputs")["backup_stores"]:
        manifests = list(Path(store.removeprefix("file://")).glob("backup/*/*/backup.manifest"))
        assert manifests
        assert all(file.read_bytes().startswith(b"Salted__") for file in manifests)


def test_the_cache_needs_a_password(stack: Checkout) -> None:
    with socket.create_connection(("127.0.0.1", stack.ports()["valkey"]), timeout=PATIENCE_S) as connection:
        connection.sendall(b"GET key\r\n")
        assert connection.recv(100).startswith(b"-NOAUTH")


@pytest.mark.parametrize("fleet", ["blue", "green"])
def test_the_service_logs_in_to_the_cache(stack: Checkout, fleet: str) -> None:
    url = f"http://127.0.0.1:{stack.ports()[fleet]}/health"
    until(lambda: httpx.get(url).json()["checks"]["cache"]["status"] == "ok", "the cache to be in use")


def test_the_first_traces_are_stored(stack: Checkout) -> None:
    with admin(stack) as connection:
        assert one(connection, "SELECT count(*) FROM llm_traces WHERE environment = 'demonstration'") >= 1000


def test_a_client_cannot_choose_the_fleet(stack: Checkout) -> None:
    with client(stack) as service:

        def all_answered() -> bool:
            answers = [service.get("/v1/traces?limit=1", headers={"X-Observatory-Fleet": "green"}) for _ in range(20)]
            assert {answer.headers["X-Observatory-Fleet"] for answer in answers if answer.is_success} <= {"blue"}
            return all(answer.is_success for answer in answers)

        until(all_answered, LATE)


@pytest.mark.parametrize("fleet", ["blue", "green"])
def test_preview_traffic_goes_where_its_header_says(stack: Checkout, fleet: str) -> None:
    with client(stack, "preview_url") as preview:
        answer = answered(preview, "/v1/traces?limit=1", fleet)
    assert answer.headers["X-Observatory-Fleet"] == fleet
    assert answer.headers["X-Observatory-Version"] == "v0.1.0"


def test_preview_traffic_without_a_fleet_is_refused(stack: Checkout) -> None:
    with client(stack, "preview_url") as preview:
        assert preview.get("/v1/traces?limit=1", headers={"X-Observatory-Fleet": "red"}).status_code == 400


@pytest.mark.parametrize("path", ["/health", "/metrics", "/", "/v2/traces"])
def test_the_balancer_blocks_private_paths(stack: Checkout, path: str) -> None:
    with client(stack) as service:
        assert service.get(path).status_code == 404


@pytest.mark.parametrize("path", ["/health/live", "/health/ready", "/openapi.json"])
def test_the_balancer_passes_public_paths(stack: Checkout, path: str) -> None:
    with client(stack) as service:
        assert answered(service, path).status_code == 200


def test_no_other_user_can_read_a_secret(stack: Checkout) -> None:
    secrets = {
        stack.output("api_key"),
        str(psycopg.conninfo.conninfo_to_dict(stack.output("database_url"))["password"]),
        stack.patroni_login()[1],
        (stack.root / ".observatory/passphrase").read_text(),
    }
    holders = {stack.root / ".observatory/passphrase"}
    # Not `rglob`, which raises where a directory of a running daemon is gone meanwhile.
    for file in (Path(place, name) for place, _, names in os.walk(stack.root / ".observatory") for name in names):
        if not file.is_file() or file.is_symlink() or "/data/" in str(file):
            continue
        try:
            content = file.read_text(errors="replace")
        except FileNotFoundError:  # the stack has removed it meanwhile
            continue
        if any(secret in content for secret in secrets if secret):
            holders.add(file)
            assert stat.S_IMODE(file.stat().st_mode) & 0o077 == 0, f"{file} can be read by others"
    assert {file.name for file in holders} == {"passphrase", "database-password", "users.txt", "restapi.yaml"}


def test_no_secret_is_in_arguments_or_environments(stack: Checkout) -> None:
    secrets = [
        stack.output("api_key").encode(),
        stack.output("database_url").rpartition("@")[0].rpartition(":")[2].encode(),
        stack.patroni_login()[1].encode(),
    ]
    members = sandbox(stack).members()
    assert len(members) > 10
    for pid in members:
        for name in ("cmdline", "environ"):
            try:
                output = Path(f"/proc/{pid}/{name}").read_bytes()
            except (FileNotFoundError, ProcessLookupError):  # it has ended, as backends do
                continue
            assert not [secret for secret in secrets if secret in output]


def test_daemons_are_not_root_inside_their_sandbox(stack: Checkout) -> None:
    daemons = [daemon for daemon in stack.well_status()["daemons"] if daemon["name"] not in HOST_PROCESSES]
    for daemon in daemons:
        status = Path(f"/proc/{daemon['pid']}/status").read_text()
        assert "CapEff:\t0000000000000000" in status, daemon["name"]


def test_the_environment_is_ready_for_a_plain_pulumi(stack: Checkout) -> None:
    lines = stack.run("env").stdout.splitlines()
    variables = dict(line.removeprefix("export ").split("=", 1) for line in lines)
    assert variables["PULUMI_BACKEND_URL"] == f"file://{stack.root}/.observatory/backend"
    assert Path(variables["PULUMI_CONFIG_PASSPHRASE_FILE"]).read_text()


def test_another_name_of_the_database_is_refused_before_anything_is_planned(stack: Checkout) -> None:
    file = stack.root / "Pulumi.local.yaml"
    before = file.read_text()
    stack.configure(database={"name": "another"})
    try:
        for command in ("preview", "up"):
            said = stack.run(command, "--engine", "embedded", expect=2).stderr
            assert "the stack's database is 'observatory', which keeps its name" in said
    finally:
        file.write_text(before)


def test_json_is_one_document_and_nothing_else(stack: Checkout) -> None:
    done = stack.run("preview", "--engine", "embedded", "--output", "json")
    assert json.loads(done.stdout)["summary"]


def test_status_loads_neither_program_nor_database(stack: Checkout) -> None:
    _, loaded = run_watched(stack, "status")
    # For the units, for when a job is next due, and for the days left of certificates.
    assert loaded & HEAVY <= {"jinja2", "apscheduler", "cryptography"}


def test_a_plan_without_changes_parses_no_migration(stack: Checkout) -> None:
    _, loaded = run_watched(stack, "preview", "--engine", "embedded")
    assert "pulumi" in loaded
    assert loaded & {"pglast", "apscheduler", "httpx", "pulumi_aws", "pulumi_kubernetes"} == set()


def sandbox(stack: Checkout) -> Sandbox:
    return Sandbox(stack.root / ".observatory/stacks/local", Path(stack.environment["OBSERVATORY_ROOTFS"]))
