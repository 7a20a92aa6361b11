"""A port in use is named with its setting and its holder."""

import contextlib
import os
import socket

import psutil
import pytest

from observatory.runtime import PortInUse, check_ports, find_free_ports, listeners
from tests.support.ports import free_port
from tests.support.waiting import until


def test_free_ports_pass() -> None:
    def are_free() -> bool:
        first, second = find_free_ports(2)
        assert first != second
        with contextlib.suppress(PortInUse):  # another process has taken one
            check_ports({"ports.postgres": first, "ports.etcd": second})
            return True
        return False

    until(are_free, "two free ports")


@pytest.mark.parametrize(
    ("family", "address"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET, ""), (socket.AF_INET6, "::")]
)
def test_a_taken_port_names_setting_and_holder(family: socket.AddressFamily, address: str) -> None:
    free = free_port()
    with socket.socket(family) as listener:
        listener.bind((address, 0))
        listener.listen()
        port = listener.getsockname()[1]
        with pytest.raises(PortInUse) as error:
            check_ports({"ports.postgres": port, "ports.etcd": free})
        check_ports({"ports.postgres": port}, ours=[os.getpid()])
    assert f"ports.postgres: {port} is held by process {os.getpid()} (" in str(error.value)
    assert "ports.etcd" not in str(error.value)


def test_one_port_for_two_settings() -> None:
    with pytest.raises(ValueError, match=r"ports\.a and ports\.b are both 5432"):
        check_ports({"ports.a": 5432, "ports.b": 5432})


def test_a_port_of_a_process_that_this_user_may_not_inspect(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        hidden = [each._replace(pid=None) for each in psutil.net_connections("tcp")]
        monkeypatch.setattr(psutil, "net_connections", lambda _kind: hidden)
        (found,) = listeners([port])
        assert found.pid is None
        assert str(found) == "a process of another user"
