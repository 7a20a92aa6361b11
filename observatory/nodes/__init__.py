"""Renders the files of a machine, as pure functions of settings.

Each module renders one daemon's configuration and command line into a `Unit`. The supervisor runs the units on `local`,
systemd runs the same units on AWS. `daemons` lists the daemons with their packages, `host_jobs` the scheduled jobs.
Nothing here writes, starts or connects. The ports are settings (`observatory.settings.base.Ports`).
"""

from observatory.nodes.unit import LOOPBACK, Host, HttpReady, Paths, TcpReady, Unit

__all__ = ["LOOPBACK", "Host", "HttpReady", "Paths", "TcpReady", "Unit"]
