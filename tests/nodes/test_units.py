"""Units are pure functions of settings, and survive a resource's inputs unchanged."""

import json
from pathlib import PurePosixPath
from typing import Any

import pytest
import yaml

from observatory.nodes import Paths, Unit
from observatory.nodes.alertmanager import alert_receiver, alertmanager
from observatory.nodes.collector import collector
from observatory.nodes.daemons import scrapes
from observatory.nodes.etcd import etcd
from observatory.nodes.exporters import (
    node_exporter,
    pgbackrest_exporter,
    pgbouncer_exporter,
    postgres_exporter,
    redis_exporter,
)
from observatory.nodes.haproxy import haproxy
from observatory.nodes.pgbouncer import pgbouncer, user_lines
from observatory.nodes.postgres import api_credentials, api_credentials_file, host_based_authentication, patroni
from observatory.nodes.prometheus import prometheus
from observatory.nodes.request_metrics import request_metrics
from observatory.nodes.storage import storage, trial
from observatory.nodes.valkey import valkey
from observatory.settings import LocalSettings

SETTINGS, PATHS = LocalSettings(), Paths()


def all_units() -> list[Unit]:
    instance = storage(SETTINGS, PATHS, fleet="blue", index=2, version="v0.1.0", sha256="a" * 64)
    balancer = haproxy(SETTINGS, PATHS, instances={"blue": (1, 2), "green": ()})
    node = [unit(SETTINGS, PATHS) for unit in (etcd, patroni, pgbouncer, valkey)]
    monitoring = [
        node_exporter(SETTINGS, PATHS),
        postgres_exporter(SETTINGS, PATHS),
        collector(SETTINGS, PATHS),
        pgbouncer_exporter(SETTINGS, PATHS),
        pgbackrest_exporter(SETTINGS, PATHS),
        redis_exporter(SETTINGS, PATHS),
        alert_receiver(SETTINGS, PATHS),
        alertmanager(SETTINGS, PATHS),
        prometheus(SETTINGS, PATHS, stack="local", instances={"blue": (1, 2), "green": ()}, scrapes=scrapes("local")),
    ]
    return [*node, instance, balancer, request_metrics(SETTINGS, PATHS), *monitoring]


def as_pulumi_carries(value: object) -> object:
    """Every number becomes a float on the way through a resource's inputs."""
    return json.loads(json.dumps(value), parse_int=float)


@pytest.mark.parametrize("unit", all_units(), ids=lambda unit: unit.name)
def test_a_unit_survives_the_way_through_a_resource(unit: Unit) -> None:
    assert Unit.model_validate(as_pulumi_carries(unit.model_dump(exclude_none=True))) == unit


@pytest.mark.parametrize("unit", all_units(), ids=lambda unit: unit.name)
def test_every_port_of_a_unit_comes_from_a_setting(unit: Unit) -> None:
    named = {f"ports.{name}": port for name, port in SETTINGS.named_ports()}
    for setting, port in unit.ports.items():
        assert setting in named
        assert port == named[setting] or unit.name == "storage-blue-2"


def test_postgresql_has_checksums_and_the_superuser_only_by_peer() -> None:
    config = yaml.safe_load(patroni(SETTINGS, PATHS).files["/srv/etc/patroni/patroni.yaml"])
    assert "data-checksums" in config["bootstrap"]["initdb"]
    assert config["postgresql"]["parameters"]["password_encryption"] == "scram-sha-256"
    rules = host_based_authentication(SETTINGS)
    assert [rule for rule in rules if "postgres" in rule] == ["local all postgres peer map=operators"]
    assert not [rule for rule in rules if rule.split()[-1] in ("trust", "md5", "password")]


def test_each_login_comes_from_where_it_belongs_and_to_its_database() -> None:
    assert host_based_authentication(SETTINGS) == [
        "local all postgres peer map=operators",
        'local "observatory" migrator,monitor peer map=operators',
        'local "observatory" app_a,app_b,readonly_a,readonly_b scram-sha-256',
        'hostssl "observatory" admin_a,admin_b,provisioner 127.0.0.1/32 scram-sha-256',
    ]


def test_pgbouncer_enforces_the_timeouts_that_a_session_can_change() -> None:
    file = pgbouncer(SETTINGS, PATHS).files["/srv/etc/pgbouncer/pgbouncer.ini"]
    assert "app_a = pool_size=20 query_timeout=35 idle_transaction_timeout=35\n" in file
    assert "readonly_b = pool_size=8 query_timeout=65 idle_transaction_timeout=65\n" in file
    assert "host=/srv/run/postgresql" in file


def test_etcd_refuses_clients_without_a_certificate() -> None:
    config = yaml.safe_load(etcd(SETTINGS, PATHS).files["/srv/etc/etcd/etcd.yaml"])
    assert config["client-transport-security"]["client-cert-auth"]
    assert config["peer-transport-security"]["client-cert-auth"]
    plain = [key for key, value in config.items() if "http://" in str(value)]
    assert plain == ["listen-metrics-urls"]


def test_patroni_reads_its_apis_password_from_a_file_that_is_not_the_units() -> None:
    unit, secret = patroni(SETTINGS, PATHS), api_credentials_file(PATHS)
    assert unit.command[-1] == str(PurePosixPath(secret).parent)
    assert secret not in unit.files
    assert yaml.safe_load(api_credentials("yes: #"))["restapi"]["authentication"]["password"] == "yes: #"


def test_no_prompt_text_reaches_the_servers_log() -> None:
    config = yaml.safe_load(patroni(SETTINGS, PATHS).files["/srv/etc/patroni/patroni.yaml"])
    parameters = config["postgresql"]["parameters"]
    assert parameters["log_error_verbosity"] == "terse"
    assert parameters["log_parameter_max_length"] == parameters["log_parameter_max_length_on_error"] == 0
    assert parameters["log_min_error_statement"] == "panic"
    assert parameters["pg_stat_statements.track_utility"] == "off"


def test_instances_of_a_fleet_take_consecutive_ports() -> None:
    units = [storage(SETTINGS, PATHS, fleet="green", index=i, version="v0.1.0", sha256="a" * 64) for i in (1, 2, 3)]
    assert [next(iter(unit.ports.values())) for unit in units] == [18200, 18201, 18202]


def test_start_limit_of_an_instance_is_that_of_its_release_or_of_the_settings() -> None:
    patient = SETTINGS.model_copy(update={"delivery": SETTINGS.delivery.model_copy(update={"start_seconds": 45})})
    common: dict[str, Any] = {"fleet": "blue", "version": "v0.1.0", "sha256": "a" * 64}
    assert storage(SETTINGS, PATHS, index=1, **common).settle_seconds == 30
    assert storage(patient, PATHS, index=1, **common).settle_seconds == 45
    assert storage(patient, PATHS, index=1, start_seconds=120, **common).settle_seconds == 120
    tried = trial(patient, PATHS, start_seconds=120, **common)
    assert tried.settle_seconds == 120
    assert int(tried.command[-2]) > 120


def test_another_build_of_a_version_runs_from_another_directory() -> None:
    commands = {
        storage(SETTINGS, PATHS, fleet="blue", index=1, version="v0.1.0", sha256=digit * 64).command for digit in "ab"
    }
    assert len(commands) == 2


def test_a_quote_in_a_password_is_doubled_for_the_pooler() -> None:
    assert user_lines({"b": "c", "a": 'a"b'}) == '"a" "a""b"\n"b" "c"\n'
