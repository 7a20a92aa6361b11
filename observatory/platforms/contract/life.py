"""The life of an instance: its own check, start, the loss of the database, a new login, and its end."""

from __future__ import annotations

import json
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from http import HTTPStatus

from observatory.delivery.releases import Manifest
from observatory.nodes import Unit
from observatory.nodes.storage import LAME_DUCK_SECONDS
from observatory.platforms.contract.api import Instance, expect, span
from observatory.platforms.contract.bench import LOGINS, Bench
from observatory.platforms.contract.requirements import ContractError, Findings
from observatory.runtime import Probe
from observatory.waiting import wait_until

CHECK_SECONDS = 60.0
NOTICE_SECONDS = 30.0  # for the loss or the return of the database
LOGIN_SECONDS = 10.0  # from a new login in the file until the old one ends
STEADY = 10  # writes in a row that must succeed
ERROR_LINES = 5
REQUIRED = ("STORAGE_FLEET", "STORAGE_DATABASE_URL")  # no service works without them
OTHER_ADDRESSES = ("127.0.0.2", "::1")  # which a listener on 0.0.0.0 or [::] has, too
CONNECT_SECONDS = 5.0


def check_self_check(findings: Findings, bench: Bench, unit: Unit, manifest: Manifest) -> None:
    """Run the program with `--check`, with right and with wrong settings."""
    with findings.requirement("check", "`--check` exits with 0 and prints name, version and schema range"):
        done = _run_check(bench, unit, {})
        if done.returncode:
            raise ContractError(f"`--check` exited with {done.returncode}: {_last_lines(done.stderr or done.stdout)}")
        expected = manifest.model_dump(include={"name", "version", "schema_min", "schema_max"})
        if (found := _parsed(done.stdout)) != expected:
            raise ContractError(f"`--check` printed {found}, expected {json.dumps(expected)}, as the manifest says")
    with findings.requirement("check", "`--check` exits with another status if a setting is invalid"):
        if _run_check(bench, unit, {"STORAGE_FLEET": "red"}).returncode == 0:
            raise ContractError("`--check` exited with 0 although STORAGE_FLEET is 'red'")

    text = "`--check` exits with another status if a setting is missing"
    with findings.requirement("check", text):
        for name in REQUIRED:
            if _run_check(bench, unit, {name: None}).returncode == 0:
                raise ContractError(f"`--check` exited with 0 although {name} is missing")


def check_listener(findings: Findings, unit: Unit) -> None:
    """Check that the instance listens on loopback only: at another address of the machine nothing responds."""
    with findings.requirement("environment", "the program listens on STORAGE_LISTEN and on no other address"):
        for host in OTHER_ADDRESSES:
            try:
                socket.create_connection((host, _port(unit)), timeout=CONNECT_SECONDS).close()
            except OSError:
                continue
            raise ContractError(
                f"the program also listens on {host}, so on every address of the machine: listen on STORAGE_LISTEN, "
                f"which is 127.0.0.1:{_port(unit)}"
            )


def check_start(findings: Findings, bench: Bench, unit: Unit) -> bool:
    """Start the instance; returns whether it became ready."""
    with findings.requirement("start", f"GET /health/ready responds 200 within {unit.settle_seconds} s of the start"):
        bench.start(unit, restart=False)
    return findings.met_last()


def check_loss_of_database(findings: Findings, bench: Bench, instance: Instance, unit: Unit) -> None:
    """Take the database away and give it back."""
    live, ready = (Probe(http=f"http://127.0.0.1:{_port(unit)}/health/{state}") for state in ("live", "ready"))
    text = "without the database an instance is not ready, but live, and refuses writes"
    with findings.requirement("health", text), bench.database_away():
        _until(lambda: not ready.check(), NOTICE_SECONDS, "/health/ready responds 200 without the database")
        if reason := live():
            raise ContractError(f"without the database: {reason}")
        check_refusals(instance)
    with findings.requirement("health", "an instance is ready again when the database is back"):
        _until(ready.check, NOTICE_SECONDS, "/health/ready does not respond 200 although the database is back")


def check_older_schema(findings: Findings, bench: Bench, unit: Unit, schema_min: int) -> None:
    """Take the schema below the lowest version of the manifest, and back."""
    ready = Probe(http=f"http://127.0.0.1:{_port(unit)}/health/ready")
    text = "while the schema version is lower than schema_min, an instance is not ready"
    with findings.requirement("database", text), bench.schema_below(schema_min):
        below = f"/health/ready responds 200 with a schema below {schema_min}"
        _until(lambda: not ready.check(), NOTICE_SECONDS, below)
    with findings.requirement("database", "an instance is ready again when the schema version fits"):
        _until(ready.check, NOTICE_SECONDS, "/health/ready does not respond 200 although the schema version fits")


def check_refusals(instance: Instance) -> None:
    """Check that what needs the database gets 503, after which the balancer and clients try again; no other 5xx.

    Raises:
        ContractError: it gets another status.
    """
    with instance.client(None) as client:
        for path in ("/health/ready", "/health"):
            expect(client.get(path), HTTPStatus.SERVICE_UNAVAILABLE)
    with instance.client(instance.keys["both"]) as client:
        written = client.post("/v1/traces", json={"items": [span(span_id="lost")]})
        expect(written, HTTPStatus.SERVICE_UNAVAILABLE)


def check_login(findings: Findings, bench: Bench, instance: Instance) -> None:
    """Change the login in the password file, and end the old one."""
    with findings.requirement("database", "a new login in the password file is used without a restart"):
        bench.use_login(LOGINS[1])
        time.sleep(LOGIN_SECONDS)
        bench.disable(LOGINS[0])
        with instance.client(instance.keys["both"]) as client:
            for number in range(STEADY):
                expect(client.post("/v1/traces", json={"items": [span(span_id=f"l{number}")]}), HTTPStatus.CREATED)


def check_log(findings: Findings, bench: Bench, instance: Instance, unit: Unit, sent: Sequence[str]) -> None:
    """Search the output of the instance for what must not be there."""
    secrets = {"an API key": tuple(instance.keys.values()), "a password": tuple(bench.passwords.values())}
    with findings.requirement("logs", "standard output and error have no prompt, key or password"):
        log = bench.sandbox.host_path(f"/srv/log/{unit.name}.log").read_text(encoding="utf-8", errors="replace")
        for kind, values in {**secrets, "a prompt or key": tuple(sent)}.items():
            if any(value in log for value in values):
                raise ContractError(f"the output of the instance has {kind}")


def check_end(findings: Findings, bench: Bench, instance: Instance, unit: Unit) -> None:
    """Send SIGTERM while a request is in flight."""
    supervisor, ready = bench.sandbox.supervisor, Probe(http=f"http://127.0.0.1:{_port(unit)}/health/ready")
    started, status = time.monotonic(), b""
    with findings.requirement("end", "after SIGTERM an instance is not ready, and finishes the requests in flight"):
        with socket.create_connection(("127.0.0.1", _port(unit)), timeout=unit.stop_seconds) as slow:
            head, body = _request(instance)
            slow.sendall(head + body[: len(body) // 2])
            time.sleep(1)  # for the instance to receive it
            started = time.monotonic()
            supervisor.signal(unit.name, "TERM")
            _until(lambda: not ready.check(), LAME_DUCK_SECONDS, "/health/ready responds 200 after SIGTERM")
            with findings.requirement("end", "after SIGTERM new requests are answered for STORAGE_LAME_DUCK_SECONDS"):
                check_lame_duck(instance, started)
            try:
                slow.sendall(body[len(body) // 2 :])
                status = slow.recv(64)
            except OSError as error:
                raise ContractError(f"the connection of a request in flight ended: {error}") from error
        if b" 201 " not in status:
            raise ContractError(f"a write in flight was answered {status.decode(errors='replace')[:40]!r}")
    with findings.requirement("end", f"after SIGTERM the program exits with 0 within {unit.stop_seconds} s"):
        left = max(1.0, unit.stop_seconds - (time.monotonic() - started))
        running = f"the program runs after SIGTERM, {unit.stop_seconds} s later"
        if not wait_until(lambda: not supervisor.status(unit.name).running, left):
            raise ContractError(running)
        if (code := supervisor.status(unit.name).exit_status) != 0:
            raise ContractError(f"the program exited with {code}")


def check_lame_duck(instance: Instance, signalled: float) -> None:
    """Check that an instance still answers, until the balancer has noticed that it is not ready.

    Raises:
        ContractError: it does not, although less than the time of the setting has passed since the signal.
    """
    import httpx  # noqa: PLC0415 - only while a release is checked

    try:
        with instance.client(instance.keys["both"]) as client:
            expect(client.get("/health/ready"), HTTPStatus.SERVICE_UNAVAILABLE)
            expect(client.get("/v1/traces", params={"limit": 1}), HTTPStatus.OK)
    except (ContractError, httpx.HTTPError) as error:
        if (passed := time.monotonic() - signalled) < LAME_DUCK_SECONDS:
            raise ContractError(f"{passed:.1f} s after SIGTERM: {str(error) or type(error).__name__}") from error


def _run_check(bench: Bench, unit: Unit, changes: dict[str, str | None]) -> subprocess.CompletedProcess[str]:
    """Run the self check with changed settings; None is a setting that is missing."""
    settings = {name: value for name, value in {**unit.environment, **changes}.items() if value is not None}
    try:
        return bench.sandbox.run((*unit.command, "--check"), env=settings, timeout=CHECK_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise ContractError(f"`--check` did not end within {CHECK_SECONDS:.0f} s") from None


def _request(instance: Instance) -> tuple[bytes, bytes]:
    body = json.dumps({"items": [span(span_id="in-flight")]}).encode()
    head = (
        f"POST /v1/traces HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {instance.keys['both']}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode(), body


def _port(unit: Unit) -> int:
    return next(iter(unit.ports.values()))


def _until(condition: Callable[[], bool], seconds: float, failure: str) -> None:
    if not wait_until(condition, seconds):
        raise ContractError(f"{failure}, {seconds:g} s later")


def _last_lines(output: str) -> str:
    return " | ".join(output.strip().splitlines()[-ERROR_LINES:])[:1000]


def _parsed(output: str) -> object:
    try:
        return json.loads(output)
    except ValueError:
        return output.strip()[:300]
