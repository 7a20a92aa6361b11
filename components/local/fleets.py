"""The blue and green fleet of the storage service."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pulumi
from pulumi.dynamic import CreateResult, DiffResult, ReadResult, Resource, ResourceProvider, UpdateResult

from components.dynamic import has_drifted, with_drift
from components.local.machine import Daemon, Machine, sandbox_of
from components.local.wanted import declared
from observatory.delivery.releases import install
from observatory.documents.rollout import FleetState
from observatory.documents.rollout import Release as WantedRelease
from observatory.nodes import Paths
from observatory.nodes.storage import (
    cache_password_file,
    instance_label,
    instance_name,
    password_file,
    release_directory,
    release_name,
    storage,
)
from observatory.runtime import Drift
from observatory.runtime.drift import CHANGED, MISSING, fingerprint
from observatory.runtime.supervisor_files import restart_programs_of
from observatory.settings import FleetName, LocalSettings


@dataclass(frozen=True, kw_only=True)
class FleetArgs:
    """A fleet's state from the rollout document, and the resources that its instances depend on.

    `document` is the file that the state was read from. `artifact` returns the path of a version's artifact,
    `start_seconds` the start limit of its manifest, if it has one.
    """

    settings: LocalSettings
    machine: Machine
    name: FleetName
    state: FleetState
    document: Path
    artifact: Callable[[str], Path]
    start_seconds: Callable[[str], int | None]
    database_login: pulumi.Input[str]
    cache_password: pulumi.Input[str]
    after: tuple[pulumi.Resource, ...]


class Fleet(pulumi.ComponentResource):
    """One fleet: its unpacked releases and its instances. `ports` are the instances' ports.

    A release's resource is named by the version, so the end of a rolling update changes no resource.
    """

    def __init__(self, name: str, args: FleetArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("observatory:local:Fleet", name, None, opts)
        size = args.settings.fleets.size
        wanted = [args.state.release(instance_label(args.name, index)) for index in range(1, size + 1)]
        versions = {each.version: each for each in wanted}
        unpacked = {version: self._release(args, each) for version, each in versions.items()}
        self.instances = [
            self._instance(args, index, release=each, after=unpacked[each.version])
            for index, each in enumerate(wanted, start=1)
        ]
        self.ports = tuple(int(port) for instance in self.instances for port in instance.unit.ports.values())
        self.register_outputs({"version": args.state.version, "size": size, "weight": args.state.weight})

    def _release(self, args: FleetArgs, wanted: WantedRelease) -> Release:
        return Release(
            release_name(args.name, wanted.version),
            machine=args.machine,
            fleet=args.name,
            version=wanted.version,
            sha256=wanted.sha256,
            artifact=args.artifact(wanted.version),
            opts=pulumi.ResourceOptions(parent=self, deleted_with=args.machine),
        )

    def _instance(self, args: FleetArgs, index: int, *, release: WantedRelease, after: pulumi.Resource) -> Daemon:
        name, paths = instance_name(args.name, index), Paths()
        unit = storage(
            args.settings,
            paths,
            fleet=args.name,
            index=index,
            version=release.version,
            sha256=release.sha256,
            start_seconds=args.start_seconds(release.version),
        )
        return Daemon(
            name,
            machine=args.machine,
            unit=unit,
            secret_files={
                password_file(paths, name): args.database_login,
                cache_password_file(paths, name): args.cache_password,
            },
            stopped=bool(args.state.stopped),
            rollout=declared(args.document, args.name, release.sha256),
            opts=pulumi.ResourceOptions(parent=self, depends_on=[after, *args.after], deleted_with=args.machine),
        )


class ReleaseProvider(ResourceProvider):
    """Unpacks an artifact into a directory of its own, after checking its digest."""

    serialize_as_secret_always = False

    def create(self, props: dict[str, Any]) -> CreateResult:
        """Check and unpack. An existing directory is complete, because unpacking ends with a rename."""
        sandbox, directory = sandbox_of(props), props["directory"]
        sandbox.make_directory(str(Path(directory).parent))
        install(Path(props["artifact"]), sha256=props["sha256"], target=sandbox.host_path(directory))
        sandbox.adopt(directory)
        files = fingerprint(sandbox.host_path(directory))
        return CreateResult(id_=directory, outs={**with_drift(props, ()), "files": files})

    def diff(self, _id: str, _olds: dict[str, Any], _news: dict[str, Any]) -> DiffResult:
        """Replace it when the release changes; unpack it again when its files are missing or were changed.

        A state of version 0.1 has no fingerprint of the files, and those on the disk count as right.
        """
        replaces = [key for key in ("directory", "sha256") if _olds.get(key) != _news.get(key)]
        drift = () if replaces else _drift(_olds)
        return DiffResult(changes=has_drifted("release", _olds, drift) or bool(replaces), replaces=replaces)

    def read(self, id_: str, props: dict[str, Any]) -> ReadResult:
        """Report missing or changed files as `drift`."""
        return ReadResult(id_=id_, outs=with_drift(props, _drift(props)))

    def update(self, _id: str, _olds: dict[str, Any], _news: dict[str, Any]) -> UpdateResult:
        """Unpack again, and restart what runs from the directory."""
        sandbox, drift = sandbox_of(_news), _drift(_olds)
        if drift:
            sandbox.remove_file(_news["directory"])
        outs = self.create(_news).outs
        if any(each.problem == CHANGED for each in drift) and sandbox.alive():
            restart_programs_of(sandbox, _news["directory"])
        return UpdateResult(outs=outs)

    def delete(self, _id: str, _props: dict[str, Any]) -> None:
        """Remove the directory, from which no process runs any more."""
        shutil.rmtree(sandbox_of(_props).host_path(_props["directory"]), ignore_errors=True)


def _drift(olds: Mapping[str, Any]) -> tuple[Drift, ...]:
    """Return whether the unpacked release of a state is missing or differs from what was unpacked."""
    path = str(olds["directory"])
    directory = sandbox_of(olds).host_path(path)
    if directory.is_symlink() or not directory.is_dir():
        return (Drift(path=path, problem=MISSING),)
    if olds.get("files") in {None, fingerprint(directory)}:
        return ()
    return (Drift(path=path, problem=CHANGED),)


class Release(Resource, module="local", name="Release"):
    """An unpacked release of the storage service."""

    def __init__(
        self,
        name: str,
        *,
        machine: Machine,
        fleet: FleetName,
        version: str,
        sha256: str,
        artifact: Path,
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        props = {
            "home": machine.home,
            "rootfs": machine.rootfs,
            "version": version,
            "sha256": sha256,
            "artifact": str(artifact),
            "directory": release_directory(Paths(), fleet, version, sha256),
        }
        super().__init__(ReleaseProvider(), name, props, opts)
