"""cloud-init user data: turns a bare Debian 13 machine into a node that runs the same units as `local`.

It contains no secret: the machine fetches passwords and keys with its own role before any daemon starts
(`programs/machine_secrets.py`). A machine is not changed in place: changed user data create a new machine, which takes
over the volumes and the address.
"""

from __future__ import annotations

import ast
import base64
import gzip
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import yaml

from observatory.nodes.systemd import DIRECTORY, USER, directories, service_name, services
from observatory.nodes.unit import Paths, Unit, render

PROGRAMS = Path(__file__).parent / "programs"
LIBRARY = Path(__file__).parent.parent
PROGRAM_DIRECTORY = "/usr/local/lib/observatory"
SECRETS_SERVICE = "observatory-secrets.service"
REFRESH_SERVICE = "observatory-secrets-refresh.service"
REFRESH_TIMER = """\
[Unit]
Description=The machine's secrets, each minute

[Timer]
OnBootSec=2min
OnUnitInactiveSec=1min

[Install]
WantedBy=timers.target
"""
MACHINE = Paths(
    config="/etc/observatory",
    data="/var/lib/observatory",
    run="/run/observatory",
    releases="/opt/observatory/releases",
)
"""Where things are on a machine that systemd runs."""
MAX_USER_DATA = 16 * 1024  # bytes, before base64: EC2's limit


@dataclass(frozen=True, kw_only=True)
class Mount:
    """A volume of the machine: the stable name of its device, and its mount point."""

    device: str
    directory: str


@dataclass(frozen=True, kw_only=True)
class Oneshot:
    """A command that prepares the machine at every boot; `after` and `before` are names of services.

    With `retry` it is repeated until it succeeds. One that does not remain active may be started again. The system is
    read-only for it, except the directories `writable` and /etc/`configures`. Root keeps only `capabilities`.
    """

    name: str
    command: tuple[str, ...]
    after: tuple[str, ...] = ()
    before: tuple[str, ...] = ()
    user: str = "root"
    retry: bool = False
    remains: bool = True
    writable: tuple[str, ...] = ()
    configures: str | None = None
    capabilities: tuple[str, ...] = ()

    def service(self) -> str:
        """Return the service file."""
        return render("oneshot.service.j2", oneshot=self, writable=self.writable, capabilities=self.capabilities)


def nvme_device(volume_id: str) -> str:
    """Return the device of an EBS volume by its serial number, since NVMe does not keep its name under /dev/sd*."""
    return f"/dev/disk/by-id/nvme-Amazon_Elastic_Block_Store_{volume_id.replace('-', '')}"


def secrets_oneshot(*, secret: str, region: str, reloaded: Sequence[str] = ()) -> Oneshot:
    """Return the command that fetches the machine's secret files, and reloads units after a change."""
    program = f"{PROGRAM_DIRECTORY}/machine_secrets.py"
    options = ["--secret", secret, "--region", region, "--owner", USER]
    for name in reloaded:
        options += ["--reload", service_name(name)]
    # systemd requires CAP_SYS_ADMIN of root to reload a service, so that a sandboxed daemon of root's cannot do it.
    capabilities = ("CAP_CHOWN", "CAP_DAC_OVERRIDE", *(("CAP_SYS_ADMIN",) if reloaded else ()))
    return Oneshot(
        name=SECRETS_SERVICE,
        command=("/usr/bin/python3", "-I", program, *options),
        configures=PurePosixPath(MACHINE.config).name,
        capabilities=capabilities,
    )


def secrets_timer(oneshot: Oneshot) -> dict[str, str]:
    """Return the service and timer that fetch the secrets every minute, so that a rotated password takes effect."""
    again = replace(oneshot, name=REFRESH_SERVICE, remains=False)
    path = f"{DIRECTORY}/{REFRESH_SERVICE.removesuffix('.service')}"
    return {f"{path}.service": again.service(), f"{path}.timer": REFRESH_TIMER}


def user_data(
    units: Sequence[Unit],
    *,
    paths: Paths,
    region: str,
    packages: Sequence[str],
    masked: Sequence[str],
    programs: Sequence[str],
    oneshots: Sequence[Oneshot],
    mounts: Sequence[Mount] = (),
    memory: Mapping[str, str] | None = None,
    files: Mapping[str, str] | None = None,
) -> str:
    """Return user data as text that begins with `#cloud-config`.

    Args:
        units: the daemons of the machine; none of their files is secret.
        paths: of the machine.
        region: the agent of Systems Manager is installed from its bucket.
        packages: Debian's packages.
        masked: services of those packages that must not run, because `units` run the same daemons.
        programs: names of files in `programs/` that the machine needs.
        oneshots: commands that run before the daemons.
        mounts: volumes; an empty volume is formatted, a volume with data never.
        memory: systemd's `MemoryMax` of each unit that has one, by the unit's name.
        files: further files by path.
    """
    prepared = tuple(oneshot.name for oneshot in oneshots if not oneshot.after)
    contents = {
        "/etc/postgresql-common/createcluster.conf": "create_main_cluster = false\n",
        "/etc/tmpfiles.d/observatory.conf": directories(units, paths),
        **{f"{PROGRAM_DIRECTORY}/{name}": program_text(name) for name in programs},
        **{path: content for unit in units for path, content in unit.files.items()},
        **services(units, paths, requires=prepared, memory=memory),
        **{f"{DIRECTORY}/{oneshot.name}": oneshot.service() for oneshot in oneshots},
        **(files or {}),
    }
    config = {
        "users": ["default", {"name": USER, "system": True, "shell": "/usr/sbin/nologin", "homedir": paths.data}],
        "bootcmd": [["systemctl", "mask", *masked]] if masked else [],
        "write_files": [
            *(_file(path, content) for path, content in contents.items()),
            {"path": "/etc/fstab", "append": True, "content": "".join(_mount(mount) for mount in mounts)},
        ],
        "package_update": True,
        "packages": list(packages),
        "runcmd": [*_agent(region, "$(dpkg --print-architecture)"), *_start(contents, mounts)],
    }
    return "#cloud-config\n" + yaml.safe_dump(config, sort_keys=False, width=1000)


def compressed(text: str) -> str:
    """Return user data gzipped and in base64, as EC2 requires it; the same text always gives the same result.

    Raises:
        ValueError: it exceeds EC2's limit.
    """
    packed = gzip.compress(text.encode(), mtime=0)
    if len(packed) > MAX_USER_DATA:
        raise ValueError(f"user data have {len(packed)} bytes gzipped; EC2 takes {MAX_USER_DATA}")
    return base64.b64encode(packed).decode()


def _file(path: str, content: str) -> dict[str, str]:
    return {"path": path, "permissions": "0644", "content": content}


def _mount(mount: Mount) -> str:
    """Return a line of fstab. A volume may be attached minutes after the boot; its file system grows with it.

    cloud-init's own `mounts` would skip a device that is not attached yet.
    """
    options = "defaults,noatime,nofail,x-systemd.makefs,x-systemd.growfs,x-systemd.device-timeout=15min"
    return f"{mount.device} {mount.directory} xfs {options} 0 2\n"


def _agent(region: str, architecture: str) -> list[str]:
    """Return the commands that install the agent of Systems Manager, which Debian does not package."""
    url = f"https://s3.{region}.amazonaws.com/amazon-ssm-{region}/latest/debian_{architecture}/amazon-ssm-agent.deb"
    return [
        f'curl --fail --silent --show-error --retry 10 --output /root/amazon-ssm-agent.deb "{url}"',
        "dpkg --install /root/amazon-ssm-agent.deb",
    ]


def _start(contents: Mapping[str, str], mounts: Sequence[Mount]) -> list[str]:
    """Return the commands that mount the attached volumes and start all services, in systemd's order."""
    names = [path.rpartition("/")[2] for path in contents if path.startswith(f"{DIRECTORY}/observatory-")]
    enabled = [name for name in names if not (name.endswith(".service") and f"{name[:-8]}.timer" in names)]
    return [
        "systemctl daemon-reload",
        *(f"systemctl start $(systemd-escape --path --suffix=mount {mount.directory})" for mount in mounts),
        "systemd-tmpfiles --create /etc/tmpfiles.d/observatory.conf",
        f"systemctl enable --now --no-block {' '.join(enabled)}",
    ]


def program_text(name: str) -> str:
    """Return a program of `programs/` without comments, docstrings and types of functions.

    EC2 limits the size of user data. A machine does not have this library: the text of a module, which uses the
    standard library alone, takes the place of its import.
    """
    module = ast.parse((PROGRAMS / name).read_text(encoding="utf-8"))
    module.body = [part for statement in module.body for part in _with_text(statement)]
    for node in ast.walk(module):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node) is not None:
            node.body = node.body[1:] or [ast.Pass()]
        if isinstance(node, ast.FunctionDef):
            node.returns = None
        elif isinstance(node, ast.arg):
            node.annotation = None
    return f"# observatory/nodes/programs/{name}, without its comments\n{ast.unparse(module)}\n"


def _with_text(statement: ast.stmt) -> list[ast.stmt]:
    """Return the statements of the module that a statement imports from this library; any other one as it is."""
    if not (isinstance(statement, ast.ImportFrom) and (statement.module or "").startswith("observatory.")):
        return [statement]
    file = LIBRARY.joinpath(*str(statement.module).split(".")[1:]).with_suffix(".py")
    _docstring, *body = ast.parse(file.read_text(encoding="utf-8")).body
    return [each for each in body if not (isinstance(each, ast.ImportFrom) and each.module == "__future__")]
