"""What the machine that runs this program needs of the database: the authority's file, and a reachable server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pulumi
from pulumi.dynamic import CreateResult, DiffResult, Resource, ResourceProvider, UpdateResult
from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_fixed

from components.dynamic import without_provider

PAUSE_S = 5
REACHABLE_SECONDS = 1200  # a bare machine installs its packages first


class AuthorityFileProvider(ResourceProvider):
    """Writes an authority's certificate to a file of this machine, because libpq reads it from a file only."""

    serialize_as_secret_always = False

    def create(self, props: dict[str, Any]) -> CreateResult:
        """Write the file."""
        path = Path(props["path"])
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        path.write_text(props["certificate"], encoding="utf-8")
        return CreateResult(id_=props["path"], outs=without_provider(props))

    def diff(self, _id: str, _olds: dict[str, Any], _news: dict[str, Any]) -> DiffResult:
        """Write it again if it is missing, for example in another checkout."""
        same = all(_olds.get(key) == _news.get(key) for key in ("path", "certificate"))
        return DiffResult(changes=not same or not Path(_news["path"]).exists())

    def update(self, _id: str, _olds: dict[str, Any], _news: dict[str, Any]) -> UpdateResult:
        """Write the file."""
        self.create(_news)
        return UpdateResult(outs=without_provider(_news))


class AuthorityFile(Resource, module="aws", name="AuthorityFile"):
    """The authority's certificate as a file; deleting the resource keeps the file."""

    path: pulumi.Output[str]

    def __init__(
        self, name: str, path: Path, certificate: pulumi.Input[str], opts: pulumi.ResourceOptions | None = None
    ) -> None:
        super().__init__(AuthorityFileProvider(), name, {"path": str(path), "certificate": certificate}, opts)


class ReachableProvider(ResourceProvider):
    """Waits until a new machine's PostgreSQL accepts connections and is the primary."""

    serialize_as_secret_always = False

    def create(self, props: dict[str, Any]) -> CreateResult:
        """Wait."""
        _wait(props["conninfo"])
        return CreateResult(id_=props["machine"], outs=without_provider(props))

    def diff(self, _id: str, _olds: dict[str, Any], _news: dict[str, Any]) -> DiffResult:
        """Wait again when the machine was replaced."""
        return DiffResult(changes=any(_olds.get(key) != _news.get(key) for key in ("machine", "conninfo")))

    def update(self, _id: str, _olds: dict[str, Any], _news: dict[str, Any]) -> UpdateResult:
        """Wait."""
        _wait(_news["conninfo"])
        return UpdateResult(outs=without_provider(_news))


class Reachable(Resource, module="aws", name="Reachable"):
    """A reachable database on a machine."""

    def __init__(
        self,
        name: str,
        *,
        machine: pulumi.Input[str],
        conninfo: pulumi.Input[str],
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        super().__init__(ReachableProvider(), name, {"machine": machine, "conninfo": conninfo}, opts)


def _wait(conninfo: str) -> None:
    from observatory.database import UnreachableError, connect  # noqa: PLC0415 - psycopg only where it is used

    def connect_once() -> None:
        with connect(conninfo, purpose="waiting"):
            return

    attempts = Retrying(
        retry=retry_if_exception_type(UnreachableError),
        stop=stop_after_delay(REACHABLE_SECONDS),
        wait=wait_fixed(PAUSE_S),
        reraise=True,
    )
    try:
        attempts(connect_once)
    except UnreachableError as error:
        raise TimeoutError(
            f"the database did not answer {REACHABLE_SECONDS // 60} min after its machine started: {error}\n"
            "Run this from the operations VPC (setting operations_vpc), and read the machine's "
            "/var/log/cloud-init-output.log through Systems Manager."
        ) from error
