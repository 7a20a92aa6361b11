"""Prometheus and Alertmanager keep their configuration when they refuse a new one, and `up` says so."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from components.local.machine import DaemonProvider
from observatory.nodes import Paths, Unit
from observatory.nodes.alertmanager import alertmanager
from observatory.nodes.prometheus import prometheus
from observatory.runtime import Probe, Sandbox
from observatory.runtime.errors import ConfigurationRefused
from observatory.settings import LocalSettings, Ports
from tests.support.certificates import sandbox_certificate
from tests.support.ports import free_ports
from tests.support.waiting import until

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def sandbox(tmp_path_factory: pytest.TempPathFactory, rootfs: Path) -> Iterator[Sandbox]:
    directory = tmp_path_factory.mktemp("configuration")
    sandbox = Sandbox(directory / "home", rootfs)
    sandbox.start()
    sandbox_certificate(sandbox, directory)
    yield sandbox
    sandbox.stop(timeout=10)


def alertmanager_unit(settings: LocalSettings) -> Unit:
    return alertmanager(settings, Paths())


def prometheus_unit(settings: LocalSettings) -> Unit:
    return prometheus(settings, Paths(), stack="local", instances={}, scrapes=())


@pytest.mark.parametrize(
    ("made", "name", "right", "wrong"),
    [
        (alertmanager_unit, "alertmanager.yaml", "group_by:", "grouped_by:"),
        (alertmanager_unit, "notifications.tmpl", "{{ define", "{{ defined"),
        (prometheus_unit, "prometheus.yaml", "scrape_interval:", "scraped_every:"),
        (prometheus_unit, "rules.yaml", "expr: ", "expr: (("),
    ],
)
def test_a_refused_configuration_fails_and_the_old_one_stays(
    sandbox: Sandbox, made: Callable[[LocalSettings], Unit], name: str, right: str, wrong: str
) -> None:
    unit, provider = made(LocalSettings(ports=Ports(**free_ports()))), DaemonProvider()
    place = {"home": str(sandbox.home), "rootfs": str(sandbox.rootfs)}
    props: dict[str, Any] = {**place, **unit.model_dump(exclude_none=True)}
    path = next(path for path in unit.files if path.endswith(name))
    text = unit.files[path]
    line = next(line for line in text.splitlines() if right in line)
    files = {**unit.files, path: text.replace(right, wrong, 1)}
    outs = provider.create(props).outs or {}
    try:
        with pytest.raises(ConfigurationRefused) as refused:
            provider.update(unit.name, outs, {**props, "files": files})
        assert f"{unit.name} refuses its new configuration" in str(refused.value)
        assert path in str(refused.value)
        assert line.replace(right, wrong).strip().split(":")[0] in str(refused.value)
        assert "observatory up" in refused.value.remedy
        assert sandbox.host_path(path).read_text() == text
        assert not provider.diff(unit.name, outs, props).changes

        # As an earlier release, or an editor, left it: the file is refused, and is then as declared again.
        sandbox.write_file(path, files[path])
        sandbox.supervisor.signal(unit.name, "HUP")
        probe = Probe(**unit.ready.target(sandbox.host_path))
        until(lambda: f"{unit.reload_metrics}_successful 0" in (probe.read("/metrics") or ""), "the refusal")
        sandbox.write_file(path, text)
        assert provider.diff(unit.name, outs, props).changes
        provider.update(unit.name, outs, props)
        assert not provider.diff(unit.name, outs, props).changes
    finally:
        provider.delete(unit.name, props)
