"""A stand-in for a cloud behind Pulumi's real provider protocol: what `aws` and `kubernetes` keep, it keeps in memory.

The CLI is attached to it by PULUMI_DEBUG_PROVIDERS. Owns: ids, computed outputs, and a record of what exists. Does not
own: what a real cloud would refuse; types are the SDKs' own, and mypy's to check.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import grpc  # type: ignore[import-untyped]
from google.protobuf import empty_pb2  # type: ignore[import-untyped]
from pulumi.runtime.proto import provider_pb2_grpc

from observatory.engines.embedded.provider import Diff, Provider, ProviderError
from observatory.engines.providers.server import Servicer

ACCOUNT, REGION = "444455556666", "eu-central-1"
PACKAGES = ("aws", "kubernetes")
MACHINE, SECRET = "aws:ec2/instance:Instance", "aws:secretsmanager/secretVersion:SecretVersion"


@dataclass(kw_only=True)
class Record:
    """A resource that exists: its type, its URN, and its outputs."""

    type: str
    urn: str
    outputs: dict[str, Any]


class Cloud(Provider):
    """Keeps resources by id and counts the changes made to it; `boot` starts what a new machine runs."""

    def __init__(self, boot: Callable[[Cloud], None] = lambda _cloud: None) -> None:
        self.records: dict[str, Record] = {}
        self.changes = 0
        self._boot = boot
        self._lock = threading.Lock()

    def diff(self, urn: str, id_: str, inputs: dict[str, Any], outputs: dict[str, Any], news: dict[str, Any]) -> Diff:
        """Compare the inputs; nothing forces a replacement."""
        changed = tuple(key for key in {**inputs, **news} if inputs.get(key) != news.get(key))
        return Diff(changes=bool(changed), changed=changed)

    def create(self, urn: str, inputs: dict[str, Any], timeout: float) -> tuple[str, dict[str, Any]]:
        """Make it, with what a cloud computes."""
        type_, name = urn.split("::")[2].rpartition("$")[2], urn.rpartition("::")[2]
        with self._lock:
            self.changes += 1
            id_ = f"{name}-{self.changes:08x}"
            made = self.records[id_] = Record(type=type_, urn=urn, outputs={**_computed(type_, id_), **inputs})
        if type_ == MACHINE:
            self._boot(self)
        return id_, made.outputs

    def read(
        self, urn: str, id_: str, inputs: dict[str, Any], outputs: dict[str, Any]
    ) -> tuple[str, dict[str, Any], dict[str, Any]]:
        """Find it."""
        found = self.records.get(id_)
        return (id_, found.outputs, inputs) if found else ("", {}, {})

    def update(
        self, urn: str, id_: str, outputs: dict[str, Any], news: dict[str, Any], timeout: float
    ) -> dict[str, Any]:
        """Change it."""
        with self._lock:
            self.changes += 1
            record = self._existing(id_)
            record.outputs = {**record.outputs, **news}
            return record.outputs

    def delete(self, urn: str, id_: str, outputs: dict[str, Any], timeout: float) -> None:
        """Remove it."""
        with self._lock:
            self.changes += 1
            self._existing(id_)
            del self.records[id_]

    def named(self, type_: str) -> list[str]:
        """Return the names of the resources of a type that exist."""
        return sorted(each.urn.rpartition("::")[2] for each in self.records.values() if each.type == type_)

    def secret(self, name: str) -> dict[str, str]:
        """Return what the secret store keeps under a name, as a machine reads it at its start."""
        versions = [each for each in self.records.values() if each.type == SECRET and each.urn.endswith(f"::{name}")]
        values: dict[str, str] = json.loads(versions[-1].outputs["secretString"])
        return values

    def _existing(self, id_: str) -> Record:
        if id_ not in self.records:
            raise ProviderError(f"{id_} does not exist")
        return self.records[id_]


def _computed(type_: str, id_: str) -> dict[str, Any]:
    """Return what clouds compute; a resource's class takes what it has a property for."""
    service = type_.split(":")[1].partition("/")[0]
    return {
        "arn": f"arn:aws:{service}:{REGION}:{ACCOUNT}:{id_}",
        "name": id_,
        "bucket": id_,
        "keyId": id_,
        "dnsName": f"{id_}.{service}.example",
        "zoneId": f"Z{id_.upper()}",
        "primaryEndpointAddress": f"{id_}.cache.example",
        "latestVersion": 1,
    }


class _Plugin(Servicer):
    def Attach(self, request: Any, context: Any) -> Any:  # noqa: N802 - the protocol's
        """Be attached to."""
        return empty_pb2.Empty()


@contextmanager
def serve(clouds: dict[str, Cloud]) -> Iterator[str]:
    """Serve each package by its cloud; yields the value of PULUMI_DEBUG_PROVIDERS."""
    servers, attached = [], []
    for package, cloud in clouds.items():
        server = grpc.server(ThreadPoolExecutor(8))
        provider_pb2_grpc.add_ResourceProviderServicer_to_server(_Plugin(cloud, package), server)
        attached.append(f"{package}:{server.add_insecure_port('127.0.0.1:0')}")
        server.start()
        servers.append(server)
    try:
        yield ",".join(attached)
    finally:
        for server in servers:
            server.stop(None)
