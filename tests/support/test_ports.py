"""Ports of tests: each worker has its own, and none is given that has a listener or was given just before."""

from __future__ import annotations

import itertools
import socket

import pytest

from tests.support.ports import EPHEMERAL, FIRST_PORT, KEPT_BLOCKS, PORT_BLOCK, free_port, free_ports


def given(monkeypatch: pytest.MonkeyPatch, worker: str) -> set[int]:
    """Return ports that a worker is given."""
    monkeypatch.setenv("PYTEST_XDIST_WORKER", worker)
    single, block = [free_port() for _ in range(100)], free_ports().values()
    assert len({*single, *block}) == len(single) + len(block)
    return {*single, *block}


def test_no_two_workers_are_given_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTEST_XDIST_WORKER_COUNT", "3")
    ports = [given(monkeypatch, worker) for worker in ("gw0", "gw1", "gw2")]
    assert len(set.union(*ports)) == sum(map(len, ports))
    assert FIRST_PORT <= min(map(min, ports)) < max(map(max, ports)) < EPHEMERAL


def test_blocks_that_are_given_in_succession_have_no_port_in_common(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no server listens yet on those that were given first."""
    monkeypatch.setenv("PYTEST_XDIST_WORKER_COUNT", "3")
    for _ in range(5):
        firsts = sorted(min(free_ports().values()) for _ in range(KEPT_BLOCKS))
        assert all(later - first >= PORT_BLOCK for first, later in itertools.pairwise(firsts))


def test_a_port_with_a_listener_is_not_given() -> None:
    taken = free_port()
    with socket.create_server(("127.0.0.1", taken)):
        assert taken not in {free_port() for _ in range(EPHEMERAL - FIRST_PORT)}  # each one several times
