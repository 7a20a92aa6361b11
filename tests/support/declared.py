"""What a stack declares, with everything known: `python -m tests.support.declared STACK [FILE]` prints it as JSON.

The program runs in a process of its own, since the SDK's state is the process's. Every resource gets an id and the
outputs that others read, so nothing in an input is unknown; what a test looks at and is not there is an error.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pulumi
from pulumi.runtime import mocks, rpc
from pulumi.runtime.stack import run_pulumi_func
from pulumi.runtime.sync_await import _sync_await

from observatory.documents.rollout import FleetState, RolloutDocument
from observatory.settings import PROJECT, load_file
from observatory.workspace import Workspace

ROOT = Path(__file__).resolve().parent.parent.parent
WEIGHTS = {"blue": 80, "green": 20}
VOLUMES = {"database-data": "vol-0aaaaaaaaaaaaaaa1", "database-wal": "vol-0bbbbbbbbbbbbbbb2"}
SECRET = "s3cr3t-of-"


@dataclass(frozen=True)
class Resource:
    """One resource as it was registered."""

    type: str
    name: str
    parent: str
    protect: bool
    custom: bool
    inputs: dict[str, Any]
    ignore_changes: list[str]
    delete_before_replace: bool
    dependencies: list[str]

    def __getitem__(self, key: str) -> Any:
        """Return an input; one that is missing is an error, not None."""
        if key not in self.inputs:
            raise AssertionError(f"{self.type} {self.name!r} has no input {key!r}; it has {sorted(self.inputs)}")
        return self.inputs[key]


@dataclass(frozen=True)
class Declared:
    """All resources and outputs of a stack."""

    resources: list[Resource]
    outputs: dict[str, Any]

    def of(self, type_: str) -> list[Resource]:
        """Return the resources of a type, such as `aws:s3/bucket:Bucket`; none is an error."""
        found = [resource for resource in self.resources if resource.type == type_]
        if not found:
            raise AssertionError(f"nothing of type {type_} is declared")
        return found

    def one(self, type_: str, name: str) -> Resource:
        """Return one resource by type and logical name."""
        (found,) = [resource for resource in self.of(type_) if resource.name == name]
        return found


def declared(stack: str, file: Path | None = None) -> Declared:
    """Declare a stack in a process of its own, by its shipped settings or those of a file."""
    command = [sys.executable, "-W", "ignore", "-m", "tests.support.declared", stack, *([str(file)] if file else [])]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise AssertionError(done.stderr)
    document = json.loads(done.stdout)
    return Declared([Resource(**resource) for resource in document["resources"]], document["outputs"])


def rollout() -> RolloutDocument:
    """Return a document of a canary in the middle: the fleets differ in everything."""
    blue = FleetState(version="v1.2.3", sha256="a" * 64, weight=WEIGHTS["blue"])
    green = FleetState(version="v1.3.0", sha256="b" * 64, weight=WEIGHTS["green"])
    return RolloutDocument(blue=blue, green=green)


class _Everything(mocks.Mocks):
    """Gives each resource what AWS and the dynamic providers would."""

    def call(self, args: mocks.MockCallArgs) -> Any:
        raise AssertionError(f"{args.token}: a stack must be planned without asking anybody")

    def new_resource(self, args: mocks.MockResourceArgs) -> tuple[str, dict[str, Any]]:
        id_ = VOLUMES.get(args.name, f"{args.name}-id")
        kind = args.typ.rpartition(":")[2]
        made = {
            "arn": f"arn:aws:made:eu-central-1:111122223333:{kind}/{args.name}",
            "name": f"{args.name}-0123456",
            "bucket": f"{args.name}-0123456",
            "keyId": "01234567-89ab-cdef-0123-456789abcdef",
            "secretArn": f"arn:aws:secretsmanager:eu-central-1:111122223333:secret:{args.name}-AbCdEf",
            "dnsName": f"{args.name}.elb.amazonaws.com",
            "zoneId": "Z0ELB",
            "latestVersion": 1,
            "primaryEndpointAddress": "primary.cache.amazonaws.com",
            "version": 6,
        }
        secret = SECRET + args.name
        own: dict[str, dict[str, Any]] = {
            "Password": {"value": secret},
            "LoginPassword": {"value": secret, "verifier": f"SCRAM of {args.name}"},
            "CertificateAuthority": {"certificate": "AUTHORITY", "key": secret},
            "Certificate": {"certificate": f"CERTIFICATE {args.name}", "key": secret},
            "ApiKey": {"key": secret},
        }
        inputs = {key: value for key, value in args.inputs.items() if value is not None}
        return id_, {**made, **inputs, **own.get(kind, {})}


class _Recorder(mocks.MockMonitor):
    def __init__(self) -> None:
        super().__init__(_Everything())
        self.registered: list[Resource] = []

    def RegisterResource(self, request: Any) -> Any:  # noqa: N802 - the SDK's name
        answer = super().RegisterResource(request)  # type: ignore[no-untyped-call]
        if request.type != "pulumi:pulumi:Stack":
            self.registered.append(
                Resource(
                    type=request.type,
                    name=request.name,
                    parent=request.parent,
                    protect=request.protect,
                    custom=request.custom,
                    inputs=_plain(rpc.deserialize_properties(request.object)),
                    ignore_changes=list(request.ignoreChanges),
                    delete_before_replace=request.deleteBeforeReplace,
                    dependencies=[urn.rpartition("::")[2] for urn in request.dependencies],
                )
            )
        return answer


def _plain(value: Any) -> Any:
    """Unwrap secrets."""
    if isinstance(value, Mapping):
        if rpc.is_rpc_secret(value):
            return _plain(rpc.unwrap_rpc_secret(value))
        return {key: _plain(item) for key, item in value.items() if key != "__provider"}
    if isinstance(value, Iterable) and not isinstance(value, str):
        return [_plain(item) for item in value]
    return value


def main() -> None:
    """Declare, and print what was."""
    stack = sys.argv[1]
    file = Path(sys.argv[2]) if sys.argv[2:] else ROOT / f"Pulumi.{stack}.yaml"
    recorder, outputs = _Recorder(), {}
    mocks.set_mocks(recorder.mocks, project=PROJECT, stack=stack, preview=False, monitor=recorder)

    def program() -> None:
        from components.platforms import declare  # noqa: PLC0415 - not before the mocks are set

        settings = load_file(file)
        made = declare(Workspace(root=ROOT, stack=stack), settings, rollout())
        for name, value in made.items():
            outputs[name] = _sync_await(pulumi.Output.from_input(value).future())

    _sync_await(run_pulumi_func(program))
    print(json.dumps({"resources": [asdict(resource) for resource in recorder.registered], "outputs": outputs}))  # noqa: T201


if __name__ == "__main__":
    main()
