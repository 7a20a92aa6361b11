import stat
from pathlib import Path

import psycopg
import pytest

from observatory import operations
from observatory.database import Masking, SampleError, deploy
from observatory.operations import DatabaseTarget, sample
from observatory.platforms.errors import OperationError
from observatory.workspace import Workspace
from tests.support.postgres import PostgresServer

MIGRATIONS = Path(__file__).parents[2] / "migrations"
TRACE = (
    "INSERT INTO llm_traces (ts, trace_id, span_id, span_name, provider, model, input_type, duration_ms, status_code, "
    "user_id) VALUES (now(), 't', 's', 'n', 'p', 'm', 'text', 1, 'OK', 'alice')"
)


def target_of(conninfo: str) -> DatabaseTarget:
    return DatabaseTarget(conninfo=conninfo, roles={}, version=None)


def test_pseudonyms_stay_the_same_until_a_new_key_and_the_key_is_private(
    postgres: PostgresServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = Workspace(root=tmp_path, stack="staging")
    (tmp_path / "Pulumi.production.yaml").touch()
    with postgres.fresh_database() as source, postgres.fresh_database() as target:
        conninfos = {"production": postgres.conninfo(dbname=source), "staging": postgres.conninfo(dbname=target)}
        monkeypatch.setattr(sample, "database_target", lambda workspace: target_of(conninfos[workspace.stack]))
        for conninfo in conninfos.values():
            deploy(conninfo, migrations=MIGRATIONS, actor="tester", deployment_id="test")
        people = []
        for _ in range(2):
            with psycopg.connect(conninfos["production"]) as connection:
                connection.execute(TRACE)
            operations.copy_sample(workspace, source="production", fraction=1)
            with psycopg.connect(conninfos["staging"]) as connection:
                people += connection.execute("SELECT user_id FROM llm_traces").fetchall()
                connection.execute("TRUNCATE llm_traces")
            with psycopg.connect(conninfos["production"]) as connection:
                connection.execute("TRUNCATE llm_traces")
        by_conninfo = operations.copy_sample(workspace, source=conninfos["production"], fraction=1)
        into_conninfo = f"{conninfos['staging']} application_name=other"
        with pytest.raises(SampleError, match="has a sample with another key"):
            operations.copy_sample(workspace, source="production", target=into_conninfo, fraction=1)
        keys = {file.name: file.read_text() for file in (tmp_path / ".observatory/sample-keys").iterdir()}
        operations.copy_sample(workspace, source="production", fraction=1, new_key=True)

    assert len(people) == 2
    assert people[0] == people[1] != ("alice",)
    assert by_conninfo.spans == 0
    renewed = {file.name: file.read_text() for file in (tmp_path / ".observatory/sample-keys").iterdir()}
    assert len(keys) == len(set(keys.values())) == 2
    assert {name for name in keys if keys[name] != renewed[name]} == {"staging"}
    for file in (tmp_path / ".observatory/sample-keys").iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        assert len(file.read_text()) == 64


def test_a_key_that_others_can_read_is_refused_and_the_settings_have_masks_and_known_values(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = Workspace(root=tmp_path, stack="staging")
    calls: list[dict[str, object]] = []
    monkeypatch.setattr(sample, "database_target", lambda _workspace: target_of("dbname=unused"))
    monkeypatch.setattr("observatory.database.copy_sample", lambda *_, **options: calls.append(options))
    workspace.config_file.write_text(
        "config:\n  llm-observatory:platform: local\n  llm-observatory:sample:\n    keep_own_data: true\n"
        "    known_values:\n      model: [gpt-4o]\n    masks:\n      llm_traces.team: team\n"
    )
    operations.copy_sample(workspace, source="dbname=other", fraction=1)
    [options] = calls
    assert options["masking"] == Masking(
        known_values={"model": frozenset({"gpt-4o"})}, masks={"llm_traces.team": "team"}
    )
    assert options["keep_own_data"] is True

    (tmp_path / ".observatory/sample-keys/staging").chmod(0o644)
    with pytest.raises(SampleError, match="other users can read it"):
        operations.copy_sample(workspace, source="dbname=other", fraction=1)
    assert len(calls) == 1


def test_a_sample_never_goes_into_production(tmp_path: Path) -> None:
    with pytest.raises(SampleError, match="never goes into production"):
        operations.copy_sample(Workspace(root=tmp_path, stack="production"), source="local", fraction=0.1)
    assert not list(tmp_path.iterdir())


def test_a_source_that_is_no_stack_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "Pulumi.staging.yaml").touch()
    monkeypatch.setattr(sample, "database_target", lambda _workspace: target_of("unused"))
    with pytest.raises(OperationError, match=r"no stack 'prodution': .* \(stacks: staging\)"):
        operations.copy_sample(Workspace(root=tmp_path, stack="staging"), source="prodution", fraction=0.1)
