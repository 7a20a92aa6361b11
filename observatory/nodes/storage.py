"""One instance of the storage service: its command line, environment and readiness, by the service contract."""

from __future__ import annotations

from observatory.delivery.rollout import FleetName
from observatory.nodes.tls import authority_file
from observatory.nodes.unit import LOOPBACK, Host, HttpReady, Paths, Unit
from observatory.settings import StackSettings

LAME_DUCK_SECONDS = 3  # the balancer checks each second and takes an instance out at the second failure
SHA256_PREFIX = 12  # digits of the digest in a release's directory name: enough to tell rebuilt artifacts apart


def release_directory(paths: Paths, fleet: FleetName, version: str, sha256: str) -> str:
    """Return where a fleet's release is unpacked; another build of the same version has another directory."""
    return f"{paths.releases}/{fleet}/{version}-{sha256[:SHA256_PREFIX]}"


def instance_name(fleet: FleetName, index: int) -> str:
    """Return the name of a fleet's instance; `index` counts from 1."""
    return f"storage-{fleet}-{index}"


def password_file(paths: Paths, name: str) -> str:
    """Return the path of the file that holds the instance's database login, user and password."""
    return f"{paths.config}/{name}/database-password"


def cache_password_file(paths: Paths, name: str) -> str:
    """Return the path of the file that holds the instance's password of the cache."""
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
    database: str = LOOPBACK.address,
    cache_url: str | None = None,
) -> Unit:
    """Return instance `index` (from 1) of a fleet, running one release; `database` is the address of its pooler."""
    name = instance_name(fleet, index)
    port = getattr(settings.ports, fleet) + index - 1
    return Unit(
        name=name,
        command=(f"{release_directory(paths, fleet, version, sha256)}/bin/storage-service",),
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
    )
