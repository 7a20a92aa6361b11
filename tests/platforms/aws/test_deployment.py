"""A complete deployment on AWS' protocol, with the real service behind the preview listener.

Simulated are the metrics and the time; Auto Scaling's answers are written down, checked against the service's model.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING

import pytest
from botocore.stub import Stubber

from observatory.database.verification_rows import MarkedRows, marked_rows
from observatory.delivery.deployment import deploy
from observatory.delivery.environment import Environment
from observatory.delivery.errors import RolledBackError
from observatory.documents.rollout import RolloutDocument
from observatory.platforms import place, smoke
from observatory.platforms.aws.balancer import AlbBalancer
from observatory.platforms.aws.clients import client
from observatory.platforms.aws.documents import S3RolloutStore
from observatory.platforms.aws.hosts import AwsHosts, Fleet
from observatory.platforms.preview import Preview
from tests.delivery.environment import BAD, GOOD, MEMBERS, NEW, OLD, Simulation, simulation
from tests.delivery.faults import canary
from tests.service.harness import Service, StorageDatabase, running_service, storage_database
from tests.support.aws import REGION
from tests.support.postgres import PostgresServer

pytestmark = pytest.mark.slow

if TYPE_CHECKING:
    from mypy_boto3_autoscaling import AutoScalingClient
    from mypy_boto3_s3 import S3Client

RELEASE = "v0.0.0-dev"  # what a service that runs from its sources says it is


@pytest.fixture(autouse=True)
def _patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A service that runs answers, however busy the machine is."""
    monkeypatch.setattr(smoke, "ANSWER_SECONDS", 60.0)
    monkeypatch.setattr(place, "READY_SECONDS", 60.0)


@pytest.fixture(scope="module")
def database(postgres: PostgresServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[StorageDatabase]:
    with storage_database(postgres, tmp_path_factory.mktemp("green")) as database:
        yield database


@pytest.fixture(scope="module")
def service(database: StorageDatabase, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with running_service(database, tmp_path_factory.mktemp("service"), {}) as service:
        service.wait_until_ready()
        yield service


@pytest.fixture
def store(s3: S3Client, bucket: str) -> S3RolloutStore:
    found = S3RolloutStore(client=s3, bucket=bucket, key="rollout/staging.json")
    first = RolloutDocument.first(version="v0.1.0", sha256=OLD, active_fleet="blue")
    s3.put_object(Bucket=bucket, Key=found.key, Body=first.model_dump_json().encode())
    return found


@pytest.fixture
def scaling() -> AutoScalingClient:
    return client("autoscaling", REGION)


@pytest.fixture
def refreshes(scaling: AutoScalingClient) -> Iterator[Stubber]:
    """Auto Scaling's stubbed answers; each of them must be used."""
    with Stubber(scaling) as stub:
        yield stub
        stub.assert_no_pending_responses()


def refresh(stub: Stubber, group: str) -> None:
    """Stub one replacement of a group's machines."""
    stub.add_response("describe_instance_refreshes", {"InstanceRefreshes": []})
    stub.add_response("start_instance_refresh", {"InstanceRefreshId": group})
    done = {"InstanceRefreshes": [{"InstanceRefreshId": group, "Status": "Successful"}]}
    stub.add_response(
        "describe_instance_refreshes", done, {"AutoScalingGroupName": group, "InstanceRefreshIds": [group]}
    )


def replaced_at_once(group: str) -> dict[str, object]:
    """Return a request to replace machines that ends the old ones first."""
    preferences = {
        "MinHealthyPercentage": 0,
        "MaxHealthyPercentage": 100,
        "InstanceWarmup": 0,
        "SkipMatching": False,
        "AutoRollback": False,
    }
    return {"AutoScalingGroupName": group, "Strategy": "Rolling", "Preferences": preferences}


@pytest.fixture
def simulated() -> Simulation:
    return simulation()


@contextmanager
def _rows(database: StorageDatabase) -> Iterator[MarkedRows]:
    with closing(database.server.superuser(database.name)) as owner, marked_rows(owner) as rows:
        yield rows


@pytest.fixture
def environment(  # noqa: PLR0917 - fixtures
    store: S3RolloutStore,
    balancer: AlbBalancer,
    scaling: AutoScalingClient,
    database: StorageDatabase,
    service: Service,
    simulated: Simulation,
) -> Environment:
    for number, group in enumerate(balancer.target_groups.values()):
        balancer.client.register_targets(TargetGroupArn=group, Targets=[{"Id": f"i-{number}"}])
    hosts = AwsHosts(
        rollout=store,
        scaling=scaling,
        balancing=balancer.client,
        fleets={
            name: Fleet(group=name, target_group=group, preview_group=group, size=1)
            for name, group in balancer.target_groups.items()
        },
        preview=Preview(
            url=f"http://127.0.0.1:{service.port}",
            marked_rows=lambda: _rows(database),
        ),
        clock=simulated,
    )
    return Environment(
        store=store,
        balancer=balancer,
        hosts=hosts,
        metrics=simulated,
        silences=simulated,
        trial=simulated,
        clock=simulated,
        journal=simulated,
    )


def test_a_canary_is_installed_verified_and_promoted(
    environment: Environment, balancer: AlbBalancer, refreshes: Stubber, simulated: Simulation
) -> None:
    refresh(refreshes, "green")
    done = deploy(environment, canary(version=RELEASE))
    assert done == environment.store.read()
    assert done.deployment is not None
    assert done.deployment.status == "promoted"
    assert balancer.weights() == {"blue": 0, "green": 100}
    shifts = [details["weights"]["green"] for event, details in simulated.events if event == "shift"]
    assert shifts == [5, 25, 50, 100]


def test_a_bad_version_is_rolled_back_and_its_fleet_restored(
    environment: Environment, balancer: AlbBalancer, refreshes: Stubber, simulated: Simulation
) -> None:
    simulated.runs |= dict.fromkeys(MEMBERS["green"], NEW)  # whose metrics are bad
    simulated.intervals = iter([GOOD, BAD, BAD, BAD])
    refresh(refreshes, "green")
    refreshes.add_response("describe_instance_refreshes", {"InstanceRefreshes": []})
    refreshes.add_response("start_instance_refresh", {"InstanceRefreshId": "back"}, replaced_at_once("green"))
    with pytest.raises(RolledBackError, match="errors"):
        deploy(environment, canary(version=RELEASE))
    assert balancer.weights() == {"blue": 100, "green": 0}
    document = environment.store.read()
    assert document is not None
    assert document.green.version == "v0.1.0"


def test_a_fleet_with_the_wrong_version_never_gets_traffic(
    environment: Environment, balancer: AlbBalancer, refreshes: Stubber, simulated: Simulation
) -> None:
    refresh(refreshes, "green")
    refreshes.add_response("describe_instance_refreshes", {"InstanceRefreshes": []})
    refreshes.add_response("start_instance_refresh", {"InstanceRefreshId": "back"}, replaced_at_once("green"))
    with pytest.raises(RolledBackError, match=f"green answers as {RELEASE}, expected v0.2.0"):
        deploy(environment, canary())
    assert balancer.weights() == {"blue": 100, "green": 0}
    assert not any(event == "shift" for event, _ in simulated.events)
