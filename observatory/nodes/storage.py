"""One instance of the storage service: its command line, environment and readiness, by the service contract."""

from __future__ import annotations

from collections.abc import Iterable

from observatory.nodes.tls import authority_file
from observatory.nodes.unit import LOOPBACK, Host, HttpReady, Paths, Unit
from observatory.settings import FleetName, StackSettings

LAME_DUCK_SECONDS = 3  # the balancer checks each second and marks an instance down at the second failure
WATCHDOG_SECONDS = 30  # without a watchdog notification, after which systemd restarts the service
TRIAL = "storage-trial"  # the instance of a pre-deployment test
TRIAL_SECONDS = 300  # after its start, when it exits if the command that removes it was killed
TRIAL_DRAIN_SECONDS = 5
SHA256_PREFIX = 12  # digits of the digest in a release's directory name: enough to tell rebuilt artifacts apart


def release_directory(paths: Paths, fleet: FleetName, version: str, sha256: str) -> str:
    """Return the directory of a fleet's unpacked release; another build of the same version has another directory."""
    return f"{paths.releases}/{fleet}/{version}-{sha256[:SHA256_PREFIX]}"


def trial_releases(paths: Paths) -> str:
    """Return the directory of releases under test, separate from the fleets' releases."""
    return f"{paths.releases}/trial"


def trial_directory(paths: Paths, version: str, sha256: str) -> str:
    """Return the directory of an unpacked release under test."""
    return f"{trial_releases(paths)}/{version}-{sha256[:SHA256_PREFIX]}"


def launcher(directory: str) -> str:
    """Return the program that starts a release."""
    return f"{directory}/bin/storage-service"


def release_name(fleet: FleetName, version: str) -> str:
    """Return the name of the resource that unpacks a version for a fleet."""
    return f"{fleet}-{version}"


def instance_label(fleet: FleetName, index: int) -> str:
    """Return an instance's name in the rollout document, the balancer and the metrics; `index` counts from 1."""
    return f"{fleet}-{index}"


def labelled(fleet: FleetName, ports: Iterable[int]) -> dict[str, int]:
    """Return the ports of a fleet's instances by their labels."""
    return {instance_label(fleet, index): port for index, port in enumerate(ports, start=1)}


def instance_name(fleet: FleetName, index: int) -> str:
    """Return the name of the unit of a fleet's instance; `index` counts from 1."""
    return unit_name(instance_label(fleet, index))


def unit_name(label: str) -> str:
    """Return the name of the unit of the instance with a label."""
    return f"storage-{label}"


def password_file(paths: Paths, name: str) -> str:
    """Return the path of the file with the instance's database user and password."""
    return f"{paths.config}/{name}/database-password"


def cache_password_file(paths: Paths, name: str) -> str:
    """Return the path of the file with the instance's password of the cache."""
    return f"{paths.config}/{name}/cache-password"


def storage(
    settings: StackSettings,
    paths: Paths,
    host: Host = LOOPBACK,
    *,
    fleet: FleetName,
    index: int,
    version: str,
    sha256: str,
    start_seconds: int | None = None,
    database: str = LOOPBACK.address,
    cache_url: str | None = None,
) -> Unit:
    """Return instance `index` (from 1) of a fleet, running one release; `database` is the address of its pooler.

    `start_seconds` is the start limit of the release's manifest, None if it has none.
    """
    name = instance_name(fleet, index)
    port = getattr(settings.ports, fleet) + index - 1
    return Unit(
        name=name,
        command=(launcher(release_directory(paths, fleet, version, sha256)),),
        environment={
            "STORAGE_LISTEN": f"{host.listen}:{port}",
            "STORAGE_FLEET": fleet,
            "STORAGE_DATABASE_URL": (
                f"postgresql://{database}:{settings.ports.pgbouncer}/{settings.database.name}"
                f"?sslmode=verify-full&sslrootcert={authority_file(paths)}"
            ),
            "STORAGE_DATABASE_PASSWORD_FILE": password_file(paths, name),
            "STORAGE_CACHE_URL": cache_url or f"redis://127.0.0.1:{settings.ports.valkey}/0",
            "STORAGE_CACHE_PASSWORD_FILE": cache_password_file(paths, name),
            "STORAGE_POOL_MAX": str(settings.fleets.pool_size),
            "STORAGE_LAME_DUCK_SECONDS": str(LAME_DUCK_SECONDS),
            "STORAGE_DRAIN_SECONDS": str(settings.fleets.drain_seconds),
        },
        ready=HttpReady(port=port, path="/health/ready"),
        watches_secrets=True,
        priority=30,
        ports={f"ports.{fleet}": port},
        stop_seconds=LAME_DUCK_SECONDS + settings.fleets.drain_seconds + 5,
        settle_seconds=start_seconds or settings.delivery.start_seconds,
    )


def fleet_machine_storage(
    settings: StackSettings, paths: Paths, host: Host, *, fleet: FleetName, database: str, cache_url: str
) -> Unit:
    """Return the instance of a fleet's machine on AWS, which runs the release at the link `current`."""
    unit = storage(
        settings,
        paths,
        host,
        fleet=fleet,
        index=1,
        version="current",
        sha256="",
        database=database,
        cache_url=f"{cache_url}/0",
    )
    program = launcher(f"{paths.releases}/{fleet}/current")
    return unit.model_copy(update={"name": "storage", "command": (program,), "watchdog_seconds": WATCHDOG_SECONDS})


def trial(
    settings: StackSettings,
    paths: Paths,
    *,
    fleet: FleetName,
    version: str,
    sha256: str,
    start_seconds: int | None = None,
) -> Unit:
    """Return an instance for pre-deployment tests: as the first of a fleet, on a port that no balancer forwards to.

    It has that instance's login and little priority, stops without a lame-duck time and within
    `TRIAL_DRAIN_SECONDS`, and exits `TRIAL_SECONDS` after its start limit at the latest.
    """
    unit = storage(settings, paths, fleet=fleet, index=1, version=version, sha256=sha256, start_seconds=start_seconds)
    port = settings.ports.trial
    program = launcher(trial_directory(paths, version, sha256))
    limit = ("/usr/bin/timeout", "--kill-after=10", str(TRIAL_SECONDS + unit.settle_seconds))
    changed = {
        "STORAGE_LISTEN": f"{LOOPBACK.listen}:{port}",
        "STORAGE_LAME_DUCK_SECONDS": "0",
        "STORAGE_DRAIN_SECONDS": str(TRIAL_DRAIN_SECONDS),
    }
    return unit.model_copy(
        update={
            "name": TRIAL,
            "command": ("/usr/bin/nice", "-n", "10", *limit, program),
            "environment": {**unit.environment, **changed},
            "ready": HttpReady(port=port, path="/health/ready"),
            "ports": {"ports.trial": port},
        }
    )
