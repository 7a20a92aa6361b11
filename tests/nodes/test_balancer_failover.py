"""Instances and fleets that are down get no requests, also after a reload or restart: on a real HAProxy."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from observatory.nodes.haproxy import backend_server, states_file
from observatory.nodes.programs.balancer_start import content, servers, state_line
from observatory.runtime import LiveServers
from observatory.runtime.haproxy import STATE_COLUMNS
from observatory.waiting import wait_until
from tests.support.balancer import PATHS, Balancer, Instance, running_balancer

DOWN, UP = "0", "2"


@pytest.fixture(scope="module")
def balancer(rootfs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Balancer]:
    directory = tmp_path_factory.mktemp("balancer")
    # An instance that runs is up, also where a busy machine lets it answer several health checks late.
    with running_balancer(rootfs, directory, {"blue": 2, "green": 1}, changed={"fall 2": "fall 8"}) as running:
        yield running


@contextmanager
def frozen(balancer: Balancer, *names: str) -> Iterator[list[Instance]]:
    """Freeze instances; they are down meanwhile, and up again afterwards."""
    instances = [_instance(balancer, name) for name in names]
    for instance in instances:
        instance.frozen = True
    try:
        assert wait_until(lambda: all(balancer.state(name) == DOWN for name in names), 60)
        for instance in instances:
            instance.paths.clear()
        yield instances
    finally:
        for instance in instances:
            instance.frozen = False
        assert wait_until(lambda: all(balancer.state(name) == UP for name in names), 60)


def _instance(balancer: Balancer, name: str) -> Instance:
    fleet, _, number = name.partition("-")
    return balancer.fleets["blue" if fleet == "blue" else "green"][int(number) - 1]


def statuses(balancer: Balancer, count: int = 30) -> set[int]:
    with httpx.Client(base_url=balancer.url, timeout=60) as client:
        return {client.get("/v1/traces/a").status_code for _ in range(count)}


@pytest.mark.parametrize("again", [Balancer.reload, Balancer.kill], ids=["reload", "restart"])
def test_a_frozen_instance_gets_no_request_after(balancer: Balancer, again: Callable[[Balancer], None]) -> None:
    with frozen(balancer, "blue-1") as (instance,):
        for _ in range(2):  # what was reloaded is reloaded, too
            again(balancer)
            assert statuses(balancer) == {200}
        assert instance.paths == []
    assert wait_until(lambda: statuses(balancer, 4) == {200} and instance.paths != [], 60)


def test_a_reload_keeps_maintenance_beside_what_is_down(balancer: Balancer) -> None:
    server = backend_server("blue", "blue-2")
    with frozen(balancer, "green-1"):
        balancer.live.set_out({server})
        balancer.reload()
        assert balancer.live.out() == {server}
        assert (balancer.state("blue-1"), balancer.state("green-1")) == (UP, DOWN)
        balancer.live.set_out(set())
        balancer.reload()
        assert balancer.live.out() == set()
    assert wait_until(lambda: balancer.state("blue-2") == UP, 60)


def test_a_full_disk_costs_only_the_state_of_servers_that_are_down(balancer: Balancer) -> None:
    partial = balancer.sandbox.host_path(f"{states_file(PATHS)}.partial")
    partial.mkdir()  # no file can be written there
    server = backend_server("blue", "blue-2")
    try:
        balancer.live.set_out({server})
        balancer.reload()
        assert balancer.live.out() == {server}
        assert statuses(balancer) == {200}
    finally:
        partial.rmdir()
        balancer.live.set_out(set())
    balancer.reload()
    assert balancer.live.out() == set()
    assert not balancer.sandbox.host_path(states_file(PATHS)).is_symlink()


def test_requests_of_a_dead_canary_go_to_the_other_fleet(balancer: Balancer) -> None:
    balancer.weigh(green=50)
    with frozen(balancer, "green-1"):
        before = balancer.settled()
        assert statuses(balancer, 60) == {200}
        fallen = balancer.settled() - before
        assert 0 < fallen["green none /v1/traces/{id} GET 200 fallback"] < 60
        assert sum(count for request, count in fallen.items() if "{id} GET 200 answered" in request) == 60
    balancer.weigh(green=0)


@pytest.mark.parametrize(("green", "dead"), [(0, ("blue-1", "blue-2")), (100, ("green-1",))])
def test_a_fleet_without_a_share_gets_no_request(balancer: Balancer, green: int, dead: tuple[str, ...]) -> None:
    """It may be a version that is being installed, or that was rolled back."""
    balancer.weigh(green=green)
    try:
        with frozen(balancer, *dead):
            assert statuses(balancer) == {503}
    finally:
        balancer.weigh(green=0)


def test_a_request_that_an_instance_may_have_executed_is_not_sent_again(balancer: Balancer) -> None:
    instances = balancer.fleets["blue"]
    for instance in instances:
        instance.paths.clear()
    assert httpx.post(f"{balancer.url}/v1/traces/ends", content=b"{}").status_code == 502
    assert [path for instance in instances for path in instance.paths] == ["/v1/traces/ends"]


def test_a_server_in_maintenance_that_is_down_has_one_line() -> None:
    config = "backend request_metrics\n    server a unix@b\nbackend fleet_blue\n    server blue-1 127.0.0.1:1\n"
    (server,) = servers(config)
    assert server == ("fleet_blue", "blue-1", 1)
    assert len(state_line(server).split()) == len(STATE_COLUMNS)
    maintenance = LiveServers.content({"fleet_blue/blue-1": 1})
    assert content(maintenance, [server]) == maintenance
    assert content("", [server]) == content(LiveServers.content({}), [server])
