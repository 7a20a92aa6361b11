"""Unix sockets below long paths."""

import socket
from pathlib import Path

from observatory.files.sockets import short_path


def test_a_socket_below_a_long_path_can_be_bound(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 120)
    deep.mkdir()
    with short_path(deep) as alias, socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{alias}/socket")
    assert (deep / "socket").is_socket()
