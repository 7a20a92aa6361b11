"""What the monitoring and the balancer of a local stack have loaded, beside what the stack declares for them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import yaml

from observatory.documents.rollout import RolloutDocument
from observatory.nodes import Paths, Unit
from observatory.nodes.daemons import LocalMachine, local_units
from observatory.nodes.haproxy import backend_server, runtime_socket, servers_file
from observatory.nodes.storage import labelled
from observatory.platforms.platform import LoadedParts
from observatory.runtime import LiveServers, Sandbox
from observatory.settings import LocalSettings

Query = Callable[[str, str], Any]
"""Returns the JSON of a GET request, by the name of the output with the server's URL, and the path."""


def loaded_parts(
    sandbox: Sandbox, settings: LocalSettings, rollout: RolloutDocument, stack: str, query: Query
) -> tuple[LoadedParts, ...]:
    """Return rules, targets, receivers and servers, declared and loaded.

    Raises:
        BalancerUnreachable: HAProxy does not answer.
        httpx.HTTPError: of `query`.
    """
    machine = LocalMachine(settings=settings, rollout=rollout, stack=stack)
    documents = {unit.name: _documents(unit) for _, unit in local_units(machine)}
    rules = query("prometheus_url", "/api/v1/rules")["data"]["groups"]
    targets = query("prometheus_url", "/api/v1/targets?state=active")["data"]["activeTargets"]
    receivers = query("alertmanager_url", "/api/v2/receivers")
    servers = LiveServers(sandbox=sandbox, file=servers_file(Paths()), socket=runtime_socket(Paths()))
    return (
        LoadedParts.of("Prometheus", "rules", _rules(documents["prometheus"]["groups"]), _rules(rules)),
        LoadedParts.of(
            "Prometheus",
            "targets",
            _declared_targets(documents["prometheus"]["scrape_configs"]),
            (f"{each['scrapePool']} {each['discoveredLabels']['__address__']}" for each in targets),
        ),
        LoadedParts.of(
            "Alertmanager",
            "receivers",
            (each["name"] for each in documents["alertmanager"]["receivers"]),
            (each["name"] for each in receivers),
        ),
        LoadedParts.of("HAProxy", "servers", _declared_servers(machine), servers.addresses()),
    )


def _documents(unit: Unit) -> dict[str, Any]:
    """Return the keys of all YAML files of a unit."""
    files = [yaml.safe_load(text) for path, text in unit.files.items() if path.endswith(".yaml")]
    return {key: value for file in files for key, value in file.items()}


def _rules(groups: list[Mapping[str, Any]]) -> Iterator[str]:
    """Yield each rule with its group; the keys of the names differ between the file and the API."""
    for group in groups:
        for rule in group["rules"]:
            yield f"{group['name']}/{rule.get('name') or rule.get('alert') or rule.get('record')}"


def _declared_targets(jobs: list[Mapping[str, Any]]) -> Iterator[str]:
    for job in jobs:
        for target in (target for config in job["static_configs"] for target in config["targets"]):
            yield f"{job['job_name']} {target}"


def _declared_servers(machine: LocalMachine) -> Iterator[str]:
    for fleet, ports in machine.instances.items():
        for label, port in labelled(fleet, ports).items():
            yield f"{backend_server(fleet, label)} 127.0.0.1:{port}"
