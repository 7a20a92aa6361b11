"""The files a machine needs, as pure functions of settings.

Each module renders one daemon into a `Unit`. The local platform hands units to its supervisor, AWS nodes hand them to
systemd: what is tested on one machine is what production runs. Nothing here writes, starts or connects.
"""

from observatory.nodes.unit import LOOPBACK, Host, HttpReady, Paths, TcpReady, Unit

__all__ = ["LOOPBACK", "Host", "HttpReady", "Paths", "TcpReady", "Unit"]
