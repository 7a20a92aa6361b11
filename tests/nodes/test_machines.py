"""The machines of an AWS stack: user data, units and the programs that prepare a machine."""

import base64
import getpass
import gzip
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from observatory.nodes.aws import BACKUP_OPTIONS, DATABASE, database_user_data, fleet_user_data
from observatory.nodes.cloud_init import MAX_USER_DATA, PROGRAM_DIRECTORY, compressed, nvme_device, program_text
from observatory.nodes.daemons import memory_limits
from observatory.nodes.pgbackrest import S3Repository
from observatory.nodes.systemd import DIRECTORY, quoted
from observatory.settings import AwsSettings, load_file
from tests.support.bad_archives import BAD_ARCHIVES, bad_archive, digest_of, member, packed

ROOT = Path(__file__).resolve().parent.parent.parent
CACHE = "rediss://primary.cache.amazonaws.com:6379"
SECRET = "arn:aws:secretsmanager:eu-central-1:111122223333:secret:database-AbCdEf"


def production() -> AwsSettings:
    settings = load_file(ROOT / "Pulumi.production.yaml")
    assert isinstance(settings, AwsSettings)
    return settings


def database() -> str:
    return database_user_data(
        production(),
        address="10.20.128.10",
        secret=SECRET,
        data_volume="vol-0aaaaaaaaaaaaaaa1",
        wal_volume="vol-0bbbbbbbbbbbbbbb2",
        buckets=tuple(
            S3Repository(bucket=f"backups-{number}", region=region, key=f"arn:aws:kms:{region}:1:key/k")
            for number, region in enumerate(("eu-central-1", "eu-west-1"), 1)
        ),
        cache_url=CACHE,
    )


def fleet() -> str:
    return fleet_user_data(
        production(),
        fleet="green",
        secret=SECRET,
        document="s3://releases/rollout/production.json",
        database="10.20.128.10",
        cache_url=CACHE,
    )


def files(text: str) -> dict[str, str]:
    return {file["path"]: file["content"] for file in yaml.safe_load(text)["write_files"]}


both = pytest.mark.parametrize("text", [database(), fleet()], ids=["database", "fleet"])


@both
def test_user_data_are_within_ec2s_limit_and_reproducible(text: str) -> None:
    packed = compressed(text)
    assert len(base64.b64decode(packed)) < MAX_USER_DATA
    assert gzip.decompress(base64.b64decode(packed)).decode() == text
    assert compressed(text) == packed


@pytest.mark.parametrize("render", [database, fleet])
def test_libyaml_writes_the_user_data_that_pyyaml_writes(
    render: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other user data would replace a machine."""
    by_libyaml = render()
    monkeypatch.setattr(yaml, "CSafeDumper", yaml.SafeDumper)
    assert render() == by_libyaml


def test_user_data_above_ec2s_limit_are_refused() -> None:
    with pytest.raises(ValueError, match="EC2 takes 16384"):
        compressed(base64.b64encode(os.urandom(MAX_USER_DATA)).decode() * 2)


@both
def test_user_data_are_a_cloud_config(text: str) -> None:
    assert text.startswith("#cloud-config\n")
    config = yaml.safe_load(text)
    assert set(config) == {"users", "bootcmd", "write_files", "package_update", "packages", "runcmd"}
    assert all(Path(path).is_absolute() for path in files(text))
    assert all(isinstance(command, str) for command in config["runcmd"])


@both
def test_user_data_contain_no_secret_file(text: str) -> None:
    for path, content in files(text).items():
        assert not re.search(r"/tls/|password\.conf|users\.txt|cipher\.conf|restapi\.yaml|logins\.yaml", path)
        assert "PRIVATE KEY" not in content
        assert not re.search(r"(?i)^\s*(password|requirepass|repo1-cipher-pass)\s*[=:]\s*\S", content, re.MULTILINE)


@both
@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
def test_systemd_accepts_every_unit(text: str, tmp_path: Path) -> None:
    """What a unit starts is not on this machine, so true stands for it; all else is as it will be."""
    units = {path: content for path, content in files(text).items() if path.startswith(DIRECTORY)}
    assert len(units) >= 3
    paths = []
    for path, content in units.items():
        startable = re.sub(r"(?m)^ExecStart=\S+", f"ExecStart={shutil.which('true')}", content)
        file = tmp_path / Path(path).name
        file.write_text(re.sub(r"(?m)^(User|Group)=observatory$", rf"\1={getpass.getuser()}", startable))
        paths.append(str(file))
    environment = {**os.environ, "SYSTEMD_UNIT_PATH": f"{tmp_path}:"}
    command = ["systemd-analyze", "verify", "--man=no", *paths]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    said = [line for line in done.stderr.splitlines() if "observatory-" in line]
    assert (done.returncode, said) == (0, [])


@both
@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
def test_every_service_is_sandboxed(text: str, tmp_path: Path) -> None:
    """The scale is systemd's own, from 0 to 10; what must be root to prepare the machine cannot come as low."""
    for path, content in files(text).items():
        if not path.startswith(DIRECTORY) or not path.endswith(".service"):
            continue
        file = tmp_path / Path(path).name
        file.write_text(content)
        limit = 26 if "User=root" in content else 20  # tenths
        command = ["systemd-analyze", "security", "--offline=true", f"--threshold={limit}", "--no-pager", str(file)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout


@both
def test_every_unit_that_a_unit_names_is_on_the_machine(text: str) -> None:
    units = {Path(path).name: content for path, content in files(text).items() if path.startswith(DIRECTORY)}
    for name, content in units.items():
        named = set(re.findall(r"observatory-[a-z-]+\.(?:service|timer)", content)) - {name}
        assert named <= units.keys(), name
        if name.endswith(".timer"):
            assert name.replace(".timer", ".service") in units


def test_a_fleets_service_is_watched_and_bounded() -> None:
    service = files(fleet())[f"{DIRECTORY}/observatory-storage.service"]
    for line in ("Type=notify", "WatchdogSec=30", "Restart=always", "MemoryMax=75%", "TasksMax=4096"):
        assert f"{line}\n" in service


def test_postgresql_has_no_memory_limit_and_its_helpers_have_one() -> None:
    written = files(database())
    assert "MemoryMax" not in written[f"{DIRECTORY}/observatory-patroni.service"]
    assert "MemoryMax=256M\n" in written[f"{DIRECTORY}/observatory-postgres-exporter.service"]
    limited = {path for path, content in written.items() if "MemoryMax" in content}
    assert len(limited) == len(memory_limits("database"))  # every name is one of a unit


@both
def test_every_daemon_is_without_privileges_and_waits_for_its_secrets(text: str) -> None:
    daemons = [content for path, content in files(text).items() if "Restart=always" in content and DIRECTORY in path]
    assert daemons
    for content in daemons:
        assert "User=observatory\n" in content
        assert "CapabilityBoundingSet=\n" in content
        assert "Requires=observatory-secrets.service" in content


def test_daemons_start_in_the_order_that_the_supervisor_has_on_local() -> None:
    written = files(database())
    patroni = written[f"{DIRECTORY}/observatory-patroni.service"]
    pooler = written[f"{DIRECTORY}/observatory-pgbouncer.service"]
    assert "observatory-etcd.service" in patroni
    assert "observatory-pgbouncer.service" not in patroni
    assert re.search(r"After=.*observatory-patroni\.service", pooler)


def test_data_and_wal_are_on_their_own_volumes_by_a_name_that_stays() -> None:
    fstab = files(database())["/etc/fstab"].splitlines()
    assert [line.split()[:3] for line in fstab] == [
        ["/dev/disk/by-id/nvme-Amazon_Elastic_Block_Store_vol0aaaaaaaaaaaaaaa1", DATABASE.data, "xfs"],
        [nvme_device("vol-0bbbbbbbbbbbbbbb2"), "/var/lib/observatory-wal", "xfs"],
    ]
    assert all("x-systemd.makefs" in line for line in fstab)  # formats a blank volume, and no other
    config = yaml.safe_load(files(database())["/etc/observatory/patroni/patroni.yaml"])
    assert {"waldir": "/var/lib/observatory-wal/pg_wal"} in config["bootstrap"]["initdb"]
    assert config["postgresql"]["data_dir"] == "/var/lib/observatory/postgres"


def test_operators_log_in_from_their_network_over_tls_and_others_from_nowhere() -> None:
    rules = yaml.safe_load(files(database())["/etc/observatory/patroni/patroni.yaml"])["postgresql"]["pg_hba"]
    over_tcp = [rule for rule in rules if rule.startswith("host")]
    assert over_tcp == [
        'hostssl "observatory" admin_a,admin_b,provisioner 127.0.0.1/32 scram-sha-256',
        'hostssl "observatory" admin_a,admin_b,provisioner 10.0.0.0/16 scram-sha-256',
        "hostssl all postgres 10.0.0.0/16 scram-sha-256",
    ]


def test_backups_go_to_both_buckets_at_the_stacks_times() -> None:
    written = files(database())
    config = written["/etc/observatory/pgbackrest/pgbackrest.conf"]
    for number, region in ((1, "eu-central-1"), (2, "eu-west-1")):
        assert f"repo{number}-type=s3\nrepo{number}-s3-bucket=backups-{number}\n" in config
        assert f"repo{number}-s3-endpoint=s3.{region}.amazonaws.com\n" in config
        assert f"repo{number}-s3-key-type=auto" in config
    assert "repo1-path=/pgbackrest\n" in config
    assert "repo2-path=/pgbackrest-2\n" in config
    for job, options in BACKUP_OPTIONS.items():
        line = " ".join(f'"{word}"' for word in (*options, "/etc/observatory/pgbackrest/repository.json"))
        service = written[f"{DIRECTORY}/observatory-{job}.service"]
        assert f'ExecStart="/usr/bin/python3" "-I" "{PROGRAM_DIRECTORY}/backup_repository.py" {line}\n' in service
        assert "OnCalendar=" in written[f"{DIRECTORY}/observatory-{job}.timer"]


def test_pgbackrest_itself_expires_nothing() -> None:
    """It would count backups with damaged pages; the machine's program has the retention."""
    written = files(database())
    configuration = written["/etc/observatory/pgbackrest/pgbackrest.conf"]
    assert "\nexpire-auto=n\n" in configuration
    assert "\nrepo1-retention-full=9999999\n" in configuration
    settings = json.loads(written["/etc/observatory/pgbackrest/repository.json"])
    assert settings["retention_days"] == production().backups.retention_days


def test_a_fleet_runs_the_current_release_and_reaches_the_pooler_by_tls() -> None:
    service = files(fleet())[f"{DIRECTORY}/observatory-storage.service"]
    assert "ExecStart=/opt/observatory/releases/green/current/bin/storage-service\n" in service
    assert '"STORAGE_LISTEN=0.0.0.0:8200"' in service
    assert "postgresql://10.20.128.10:6432/observatory?sslmode=verify-full" in service
    assert f'"STORAGE_CACHE_URL={CACHE}/0"' in service


def test_words_of_a_unit_survive_systemds_quoting() -> None:
    assert quoted('a "b" 50% $HOME \\') == '"a \\"b\\" 50%% $HOME \\\\"'
    assert quoted("$HOME", command=True) == '"$$HOME"'


class Aws:
    """A stand-in for the AWS CLI: it answers from a directory, and the programs find it on PATH.

    A program runs as a machine has it: its text of the user data, in a Python that has no other module of this library.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        (directory / "bin").mkdir()
        (directory / "s3").mkdir()
        cli = directory / "bin" / "aws"
        cli.write_text(
            '#!/bin/sh\ncase "$1" in\n'
            f'secretsmanager) cat "{directory}/secret" ;;\n'
            f's3) file="{directory}/s3/${{6#s3://}}"; [ "$7" = - ] && exec cat "$file"; exec cp "$file" "$7" ;;\nesac\n'
        )
        cli.chmod(0o755)

    def put(self, key: str, content: bytes) -> None:
        path = self.directory / "s3" / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)

    def run(self, program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        shipped = self.directory / "programs" / f"{program}.py"
        shipped.parent.mkdir(exist_ok=True)
        shipped.write_text(program_text(shipped.name))
        place = str(shipped.parent)
        wrapper = f"import sys; sys.path.insert(0, {place!r}); import {program} as p; p.PAUSE_S = 0; p.main()"
        environment = {**os.environ, "PATH": f"{self.directory / 'bin'}:{os.environ['PATH']}"}
        return subprocess.run(
            [sys.executable, "-I", "-S", "-B", "-c", wrapper, *arguments],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )


@pytest.fixture
def aws(tmp_path: Path) -> Aws:
    return Aws(tmp_path)


def test_only_their_owner_can_read_secret_files(aws: Aws, tmp_path: Path) -> None:
    target = tmp_path / "etc" / "patroni" / "logins.yaml"
    (tmp_path / "secret").write_text(json.dumps({str(target): "password: x\n"}))
    owner = getpass.getuser()
    done = aws.run("machine_secrets", "--secret", SECRET, "--region", "eu-central-1", "--owner", owner)
    assert (done.returncode, done.stderr) == (0, "")
    assert target.read_text() == "password: x\n"
    assert target.stat().st_mode & 0o777 == 0o600


def test_a_rotated_password_is_written_and_its_reader_reloaded_and_nothing_else_happens(
    aws: Aws, tmp_path: Path
) -> None:
    target, told = tmp_path / "users.txt", tmp_path / "told"
    systemctl = tmp_path / "bin" / "systemctl"
    systemctl.write_text(f'#!/bin/sh\necho "$@" >> "{told}"\n')
    systemctl.chmod(0o755)
    options = ("--secret", SECRET, "--region", "eu-central-1", "--owner", getpass.getuser(), "--reload", "a.service")
    for password in ("old", "old", "new"):
        (tmp_path / "secret").write_text(json.dumps({str(target): password}))
        done = aws.run("machine_secrets", *options)
        assert (done.returncode, done.stderr) == (0, "")
    assert target.read_text() == "new"
    assert told.read_text() == 2 * "--no-block try-reload-or-restart a.service\n"


@both
def test_secrets_are_fetched_again_each_minute(text: str) -> None:
    written = files(text)
    assert "OnUnitInactiveSec=1min" in written[f"{DIRECTORY}/observatory-secrets-refresh.timer"]
    refresh = written[f"{DIRECTORY}/observatory-secrets-refresh.service"]
    assert "RemainAfterExit" not in refresh  # else the timer would start it once
    assert ("--reload observatory-pgbouncer.service" in refresh) == ("observatory-pgbouncer" in text)
    assert "observatory-secrets-refresh.timer" in yaml.safe_load(text)["runcmd"][-1]
    assert "observatory-secrets-refresh.service" not in yaml.safe_load(text)["runcmd"][-1]


def test_an_unreadable_secret_is_reported(aws: Aws) -> None:
    done = aws.run("machine_secrets", "--secret", SECRET, "--region", "eu-central-1", "--owner", "root")
    assert done.returncode == 1
    assert f"{SECRET} cannot be read, 20 attempts" in done.stderr
    assert "No such file" in done.stderr


def publish(aws: Aws, version: str, artifact: Path, *, sha256: str | None = None) -> None:
    """Publish a version that the rollout document names for the green fleet."""
    aws.put(f"releases/{version}.tar.gz", artifact.read_bytes())
    document: dict[str, Any] = {"green": {"version": version, "sha256": sha256 or digest_of(artifact)}, "blue": {}}
    aws.put("releases/rollout/production.json", json.dumps(document).encode())


def install(aws: Aws) -> subprocess.CompletedProcess[str]:
    """Install what the document says."""
    options = ("--document", "s3://releases/rollout/production.json", "--releases", "s3://releases")
    place = ("--region", "eu-central-1", "--fleet", "green", "--directory", str(aws.directory / "installed"))
    return aws.run("fleet_release", *options, *place)


def release(aws: Aws, tmp_path: Path, version: str, *, sha256: str | None = None) -> subprocess.CompletedProcess[str]:
    """Publish a good archive, and install what the document says."""
    artifact = tmp_path / f"{version}.tar.gz"
    program = tmp_path / "storage-service"
    program.write_text(version)
    with tarfile.open(artifact, "w:gz") as archive:
        archive.add(program, "bin/storage-service")
    publish(aws, version, artifact, sha256=sha256)
    return install(aws)


def test_a_fleet_installs_the_documents_version_and_switches_in_one_step(aws: Aws, tmp_path: Path) -> None:
    current = tmp_path / "installed" / "current"
    for version in ("v1.0.0", "v1.1.0"):
        done = release(aws, tmp_path, version)
        assert (done.returncode, done.stderr) == (0, "")
        assert (current / "bin" / "storage-service").read_text() == version
    assert current.is_symlink()
    assert len([path for path in current.parent.iterdir() if path.name.startswith("v1.")]) == 2


def test_another_artifact_than_the_documents_is_not_installed(aws: Aws, tmp_path: Path) -> None:
    release(aws, tmp_path, "v1.0.0")
    done = release(aws, tmp_path, "v1.1.0", sha256="0" * 64)
    assert done.returncode == 1
    assert "the rollout document says 0000" in done.stderr
    assert (tmp_path / "installed" / "current" / "bin" / "storage-service").read_text() == "v1.0.0"
    assert sorted(path.name for path in (tmp_path / "installed").iterdir())[:2] == [".lock", "current"]


@pytest.mark.parametrize("bad", BAD_ARCHIVES)
def test_a_bad_archive_is_not_installed_and_leaves_nothing(aws: Aws, tmp_path: Path, bad: str) -> None:
    publish(aws, "v1.0.0", bad_archive(tmp_path, bad))
    done = install(aws)
    assert done.returncode == 1
    assert re.search(BAD_ARCHIVES[bad], done.stderr)
    assert "Traceback" not in done.stderr
    assert [path.name for path in (tmp_path / "installed").iterdir()] == [".lock"]
    assert not (tmp_path / "outside").exists()


def test_what_a_run_that_was_killed_has_left_is_no_release_and_is_removed(aws: Aws, tmp_path: Path) -> None:
    release(aws, tmp_path, "v1.0.0")
    installed = tmp_path / "installed"
    (installed / ".abandoned" / "unpacked" / "bin").mkdir(parents=True)
    (installed / ".current.17").symlink_to("v1.0.0")
    done = release(aws, tmp_path, "v1.1.0")
    assert (done.returncode, done.stderr) == (0, "")
    hidden = [path.name for path in installed.iterdir() if path.name.startswith(".")]
    assert hidden == [".lock"]
    assert (installed / "current" / "bin" / "storage-service").read_text() == "v1.1.0"


def test_owners_and_modes_of_an_archive_are_not_used_on_a_machine(aws: Aws, tmp_path: Path) -> None:
    members = (member("bin/service", mode=0o6777, uid=1234, gid=1234), member("secret", mode=0o602))
    publish(aws, "v1.0.0", packed(tmp_path, *members)[0])
    assert install(aws).returncode == 0
    root = (tmp_path / "installed" / "current").resolve()
    modes = {path.name: path.stat().st_mode & 0o7777 for path in (root, root / "bin" / "service", root / "secret")}
    assert modes == {root.name: 0o755, "service": 0o755, "secret": 0o644}
