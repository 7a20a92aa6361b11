"""Commands that bring a stack up, show it and remove it."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from observatory import operations
from observatory.cli.app import (
    Engine,
    EngineOption,
    EnvironmentOption,
    Output,
    OutputOption,
    WaitOption,
    app,
    confirm,
    print_json,
)
from observatory.cli.backup import PassphraseFileOption, read_passphrase, size
from observatory.cli.certificates import certificates_json
from observatory.cli.database import plan_view as schema_plan_view
from observatory.cli.plan import overview_view, plan_json, plan_view
from observatory.cli.terminal import MARKS, ConsoleReporter, print_notice, print_result, show_live, table
from observatory.documents.event_text import event_phase, event_text
from observatory.errors import DONE, FAILED
from observatory.platforms.errors import StackNotUpError
from observatory.settings import FLEETS

if TYPE_CHECKING:
    from observatory.documents.journal import Entry
    from observatory.documents.rollout import Deployment
    from observatory.engines.embedded import Result
    from observatory.operations import DaemonStatus, JobStatus, PasswordStatus, Status, UpResult
    from observatory.workspace import Workspace


YesOption = Annotated[bool, typer.Option("--yes", "-y", help="Skip the confirmation.")]
DONE_WORDS = {"create": "created", "update": "updated", "replace": "replaced", "delete": "deleted"}


@app.command()
def up(
    environment: EnvironmentOption = "local",
    yes: YesOption = False,
    wait: WaitOption = 0,
    output: OutputOption = Output.TABLE,
    engine: EngineOption = Engine.AUTO,
) -> None:
    """Bring the stack up. Running it again changes nothing.

    On a terminal it shows the changes and prompts for confirmation.
    """
    workspace = operations.open_workspace(environment)
    if sys.stdin.isatty() and not yes:
        _confirm_changes(workspace, engine)
    with ConsoleReporter() as report, operations.waiting_for_lock(wait):
        done = operations.up(workspace, choice=engine.value, report=report)
    if output is Output.JSON:
        status = _status_json(done.status) if done.status else None
        print_json({**_result_json(done.result), "engine": done.engine, "status": status})
    else:
        _print_up(done)
    raise typer.Exit(DONE if done.status is None or done.status.healthy else FAILED)


def _confirm_changes(workspace: Workspace, engine: Engine) -> None:
    """Show on stderr what would change, and prompt for confirmation if anything would."""
    with ConsoleReporter() as report:
        plan = operations.preview(workspace, choice=engine.value, report=report)
    if set(plan.result.summary) <= {"same"}:
        return
    print_notice(overview_view(operations.overview(workspace, plan)))
    confirm(f"Make these changes to the stack {workspace.stack!r}?")


@app.command()
def preview(
    environment: EnvironmentOption = "local",
    output: OutputOption = Output.TABLE,
    engine: EngineOption = Engine.AUTO,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show every new resource.")] = False,
    full: Annotated[bool, typer.Option("--full", help="Show every new resource with its long texts.")] = False,
) -> None:
    """Show what `up` would change. Changes nothing.

    Shows a summary, the differences of existing resources and pending migrations.
    """
    workspace = operations.open_workspace(environment)
    with ConsoleReporter() as report:
        plan = operations.preview(workspace, choice=engine.value, report=report)
    found = operations.overview(workspace, plan)
    if output is Output.JSON:
        print_json({**plan_json(plan), "overview": asdict(found)})
        return
    print_result(overview_view(found))
    print_result(plan_view(plan, new=verbose or full, full=full))
    if plan.schema:
        print_result(schema_plan_view(plan.schema))
    if found.created and not (verbose or full):
        print_result("New resources in detail: --verbose; with long texts: --full")
    print_result(_summary(plan.result, "planned"))


@app.command()
def down(
    environment: EnvironmentOption = "local",
    keep_data: Annotated[
        bool, typer.Option("--keep-data", help="Stop the stack, keep its data, keys and passwords.")
    ] = False,
    yes: YesOption = False,
    output: OutputOption = Output.TABLE,
    engine: EngineOption = Engine.AUTO,
) -> None:
    """Stop and remove the stack."""
    workspace = operations.open_workspace(environment)
    if not (yes or keep_data):
        confirm(f"Remove the stack {environment!r} with all its data, and the backups in its home?")
    with ConsoleReporter() as report:
        operations.down(workspace, keep_data=keep_data, choice=engine.value, report=report)
    if output is Output.JSON:
        print_json({"stopped": True, "removed": not keep_data})
        return
    print_result(
        "Stopped. `observatory up` starts the stack again with its data." if keep_data else "Stopped and removed."
    )


@app.command()
def status(
    environment: EnvironmentOption = "local",
    output: OutputOption = Output.TABLE,
    watch: Annotated[bool, typer.Option("--watch", help="Refresh every second until interrupted.")] = False,
) -> None:
    """Show daemons, jobs, fleets and passwords.

    Exit code 1 if a daemon is not ready, or an instance runs another version than the deployed one.
    """
    workspace = operations.open_workspace(environment)
    if watch and output is Output.JSON:
        raise typer.BadParameter("--watch cannot be combined with --output json; run the command repeatedly instead")
    if watch:
        show_live(lambda: _status_view(operations.status(workspace)))
    found = operations.status(workspace)
    if found.rollout is None:
        raise StackNotUpError(environment)
    if output is Output.JSON:
        print_json(_status_json(found))
    else:
        print_result(_status_view(found))
    raise typer.Exit(DONE if found.healthy else FAILED)


@app.command()
def outputs(
    name: Annotated[str | None, typer.Argument(help="Print the value of this output alone.")] = None,
    environment: EnvironmentOption = "local",
    output: OutputOption = Output.TABLE,
    show_secrets: Annotated[bool, typer.Option("--show-secrets", help="Print secrets in plain text.")] = False,
) -> None:
    """Show the stack's outputs."""
    values = operations.outputs(operations.open_workspace(environment), show_secrets=show_secrets)
    if not values:
        raise StackNotUpError(environment)
    if name is not None and name not in values:
        raise typer.BadParameter(f"no output {name!r} (outputs: {', '.join(values)})")
    if output is Output.JSON:
        print_json(dict(values) if name is None else values[name])
    elif name is not None:
        print(_plain(values[name]))  # noqa: T201 - bare, for $(...)
    else:
        print_result(table("Outputs", ("name", "value"), [(key, _plain(value)) for key, value in values.items()]))


@app.command()
def env(environment: EnvironmentOption = "local", output: OutputOption = Output.TABLE) -> None:
    """Print the environment of a plain `pulumi` for eval.

    Use it as: eval "$(observatory env)". Both engines then work on the same state.
    """
    variables = operations.environment(operations.open_workspace(environment))
    if output is Output.JSON:
        print_json(variables)
        return
    for key, value in variables.items():
        print(f"export {key}={shlex.quote(value)}")  # noqa: T201 - for eval


@app.command()
def bootstrap(
    *,
    restore_from: Annotated[
        Path | None, typer.Option("--restore-from", help="Copy of a backup repository of a lost machine.")
    ] = None,
    key_file: Annotated[
        Path | None, typer.Option("--key-file", help="What `backup key export` wrote on that machine.")
    ] = None,
    passphrase_file: PassphraseFileOption = None,
    accept_gap: Annotated[
        bool, typer.Option("--accept-gap", help="Lose what is after a gap in the archived WAL.")
    ] = False,
    environment: EnvironmentOption = "local",
    output: OutputOption = Output.TABLE,
) -> None:
    """Build the root filesystem, passphrase and first release."""
    workspace = operations.open_workspace(environment)
    if (restore_from is None) != (key_file is None):
        raise typer.BadParameter("--restore-from PATH and --key-file FILE belong together")
    document: dict[str, Any] = {}
    with ConsoleReporter() as report:
        if restore_from and key_file:
            recovered = operations.recover_machine(
                workspace,
                repository=restore_from,
                key_file=key_file,
                passphrase=read_passphrase(passphrase_file) if operations.is_encrypted(key_file) else "",
                accept_gap=accept_gap,
                report=report,
            )
            document["recovered"] = asdict(recovered)
        else:
            operations.bootstrap(workspace, report=report)
    if output is Output.JSON:
        print_json({"backend": str(workspace.backend), "releases": workspace.releases.versions(), **document})
    elif document:
        print_result(f"Recovered {recovered.label} and the WAL up to {recovered.end}. Run `observatory up`.")


def _result_json(result: Result) -> dict[str, Any]:
    return {
        "steps": [{"operation": step.operation, "urn": step.urn} for step in result.steps],
        "summary": result.summary,
        "outputs": result.outputs,
        "duration": round(result.duration, 3),
    }


def _status_json(status: Status) -> dict[str, Any]:
    return {
        "healthy": status.healthy,
        "schema_version": status.schema_version,
        "daemons": [daemon.as_json() for daemon in status.daemons],
        "jobs": [job.as_json() for job in status.jobs],
        "certificates": certificates_json(status.certificates),
        "missing_certificates": status.missing_certificates,
        "waiting_wal": asdict(status.waiting_wal),
        "database_rollback": status.database_rollback and status.database_rollback.model_dump(mode="json"),
        "rollback_left_over": [str(each) for each in status.rollback_left_over],
        "heartbeat_age": status.heartbeat_age,
        "monitoring_down": status.monitoring_down,
        "passwords": [asdict(password) for password in status.passwords],
        "rollout": status.rollout.model_dump() if status.rollout else None,
        "evaluation": asdict(status.evaluation) if status.evaluation else None,
    }


def _waiting_wal(status: Status) -> list[str]:
    """Return a line about the WAL that waits for a backup repository, if it has waited for a minute."""
    found = status.waiting_wal
    if found.seconds_left is None:
        return []
    text = (
        f"\nWAL waits for a backup repository: {found.segments} segments, {size(found.bytes)}, since "
        f"{datetime.fromtimestamp(found.since or 0, UTC):%Y-%m-%d %H:%M} UTC. PostgreSQL keeps it; at this rate the "
        f"disk is full in {found.seconds_left / 3600:.1f} hours. See `observatory backup verify`"
    )
    return [text]


def unfinished_rollback(status: Status) -> list[str]:
    """Return a line about a rollback of the database that is not finished."""
    found = status.database_rollback
    if found is None:
        return []
    text = (
        f"\nThe {found.kind} of the database {found.id} is not finished; its next step is to {found.phase}. If its "
        "command no longer runs, `observatory up` ends it"
    )
    return [text]


def left_over(status: Status) -> list[str]:
    """Return a line about what a killed rollback of the database has left."""
    if not status.rollback_left_over:
        return []
    what = ", ".join(map(str, status.rollback_left_over))
    return [f"\nA rollback of the database that was killed has left {what}. `observatory up` removes it"]


def monitoring_down(status: Status) -> list[str]:
    """Return a line about monitoring without a heartbeat."""
    if not status.monitoring_down:
        return []
    text = (
        f"\nMonitoring is down: no heartbeat for {status.heartbeat_age:.0f} s, so alerts are not delivered. Check "
        "prometheus, alertmanager and alert-receiver above; `observatory up` starts missing daemons"
    )
    return [text]


def _status_view(status: Status) -> RenderableType:
    if status.rollout is None:
        return "The stack is not up: run `observatory up` first."
    rows = [
        (
            daemon.name,
            daemon.address,
            _version(daemon),
            str(daemon.pid or "-"),
            _coloured(daemon.health),
            f"{daemon.memory_mb} MiB" if daemon.memory_mb is not None else "-",
        )
        for daemon in status.daemons
    ]
    fleets = [
        (name, state.versions, _running(status.instances(name)), str(status.fleet_size), f"{state.weight} %")
        for name, state in ((name, status.rollout.fleet(name)) for name in FLEETS)
    ]
    return Group(
        table("Daemons", ("daemon", "address", "version", "pid", "health", "memory"), rows),
        jobs_table(status.jobs, title="\nJobs"),
        table("\nFleets", ("fleet", "version", "running", "instances", "weight"), fleets),
        *([_deployment(status.rollout.deployment)] if status.rollout.deployment else []),
        *([_evaluation(status.evaluation)] if status.evaluation else []),
        table("\nPasswords", ("role", "login", "age", "action"), [_password_row(each) for each in status.passwords]),
        _certificates(status),
        *_waiting_wal(status),
        *unfinished_rollback(status),
        *left_over(status),
        *monitoring_down(status),
        f"\nSchema version: {int(status.schema_version) if status.schema_version is not None else 'none'}",
    )


def jobs_table(jobs: Sequence[JobStatus], title: str = "Jobs") -> Table:
    """Return the table of scheduled jobs."""
    rows = [
        (
            status.job.name,
            status.job.cron,
            Text(status.record.result, style="red" if status.record.failing else ""),
            _minute(status.record.started),
            _minute(status.record.last_success),
            _minute(status.next_run),
        )
        for status in jobs
    ]
    columns = ("job", "schedule (UTC)", "last run", "started", "last success", "next run")
    return table(title, columns, rows)


def _minute(time: datetime | None) -> str:
    return f"{time:%Y-%m-%d %H:%M}" if time else "-"


def _deployment(last: Deployment) -> str:
    step = f", step {last.step + 1} of {len(last.weights)}" if last.status == "shifting" and last.weights else ""
    request = f", {last.request} requested" if last.request else ""
    why = f": {last.reason}" if last.reason else ""
    return f"\n{last.version} to {last.target} by {last.strategy}: {last.status}{step}{request}{why}"


def _evaluation(evaluation: Entry) -> Text:
    """Return the last evaluation of the gate: its time, its verdict and its numbers."""
    mark, style = MARKS[event_phase(evaluation.event, evaluation.details)]
    when = f"{datetime.fromtimestamp(evaluation.at, UTC):%H:%M:%S} UTC"
    return Text.assemble(f"Gate at {when}: ", (f"{mark} {event_text(evaluation.event, evaluation.details)}", style))


def _version(daemon: DaemonStatus) -> str | Text:
    """Return a daemon's version; in red what an instance runs where the rollout document has another version."""
    if daemon.running_version in (None, daemon.version):
        return daemon.version
    return Text(f"{daemon.running_version} ({daemon.version} wanted)", style="red")


def _running(instances: Sequence[DaemonStatus]) -> Text:
    """Return the versions that the instances of a fleet report, in red where the document has others."""
    found = sorted({each.running_version or each.health for each in instances})
    differs = any(each.running_version != each.version and each.health != "off" for each in instances)
    return Text(" and ".join(found), style="red" if differs else "")


def _coloured(health: str) -> Text:
    return Text(health, style={"ready": "green", "off": "dim"}.get(health, "red"))


def _print_up(done: UpResult) -> None:
    if done.status:
        print_result(_status_view(done.status))
    _print_demonstration(done)
    print_result(_summary(done.result, f"by the {done.engine} engine"))
    if done.status:
        print_result(_next_steps())


def _password_row(password: PasswordStatus) -> tuple[str, str, str, Text]:
    if password.unfinished:
        what = Text("rotation not finished: run observatory rotate-passwords", style="red")
    else:
        what = Text("too old: run observatory rotate-passwords", style="red") if password.overdue else Text("")
    return password.role, password.login, f"{password.age_days} days", what


def _certificates(status: Status) -> Text:
    """Return which certificates are missing, or which expires next, and when."""
    found = status.certificates
    if status.missing_certificates:
        names = ", ".join(status.missing_certificates)
        return Text("\nCertificates: ").append(f"{names} missing: run observatory up", style="red")
    if not found:
        return Text("\nCertificates: none")
    first = next((each for each in found if each.expiring), found[0])
    style = "red" if first.expiring else ""
    return Text(f"\nCertificates: {len(found)}; ").append(f"{first.name} {first.left}", style=style)


def _print_demonstration(done: UpResult) -> None:
    if done.demonstration:
        shown = done.demonstration
        by = ", ".join(f"{count} by {fleet}" for fleet, count in sorted(shown.answered_by.items()))
        print_result(f"Traces: {shown.sent} sent through the balancer, {shown.read_back} read back ({by})")


def _summary(result: Result, how: str) -> str:
    changed = {name: count for name, count in result.summary.items() if name != "same"}
    words = {name: f"to {name}" if how == "planned" else DONE_WORDS.get(name, name) for name in changed}
    what = ", ".join(f"{count} {words[name]}" for name, count in changed.items())
    return f"\n{what or 'No changes'} ({result.summary.get('same', 0)} unchanged), {how} in {result.duration:.1f} s"


def _next_steps() -> str:
    return (
        "\nNext: observatory console · observatory status · observatory outputs · make down\n"
        '      eval "$(.venv/bin/observatory env)" for a plain pulumi'
    )


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
