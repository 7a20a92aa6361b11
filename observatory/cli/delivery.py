"""Commands that deploy versions of the service, roll them back and manage stored releases."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
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
    deploy_group,
    finite,
    print_json,
)
from observatory.cli.backup import SourceOption
from observatory.cli.database_rollback import DatabaseOptions, roll_back_database
from observatory.cli.terminal import ConsoleReporter, print_error, print_result, table
from observatory.cli.verify import verification_view
from observatory.documents.rollout import HEALTH_CHECK_S, TOTAL_WEIGHT, Deployment, RolloutDocument, Strategy
from observatory.errors import DONE, FAILED, REFUSED, ObservatoryError
from observatory.settings import FLEETS, FleetName

if TYPE_CHECKING:
    from observatory.operations import DeliveryOptions, ReleasePlan, RolloutControl, StoredRelease
    from observatory.operations.rollout_control import ControlRequest
    from observatory.workspace import Workspace

releases = typer.Typer(help="Sign, store, approve and deploy releases of the service.", no_args_is_help=True)
app.add_typer(releases, name="release")
rollout = typer.Typer(help="Pause, resume, promote or abort a running deployment.", no_args_is_help=True)
app.add_typer(rollout, name="rollout")


CanaryOption = Annotated[
    int | None,
    typer.Option(min=1, max=TOTAL_WEIGHT - 1, help="First canary step in percent; default: delivery.canary_steps."),
]
BakeOption = Annotated[
    float | None,
    typer.Option(min=0, callback=finite, help="Seconds to observe each step; default: delivery.bake_seconds."),
]
SkipTestsOption = Annotated[
    bool, typer.Option("--skip-tests", help="Skip the pre-deployment tests. The audit records it.")
]
BackupFileOption = Annotated[
    str | None, typer.Option("--backup-file", help="Backup, by its label, or dump to restore the database from.")
]


class Method(StrEnum):
    """How to roll back."""

    BLUE_GREEN = "blue-green"
    APPLICATION = "application"
    DATABASE = "database"


def _refuse_approved_by(given: str | None) -> None:
    if given is not None:
        raise typer.BadParameter(
            "a name proves nothing and is no longer accepted: the approver runs "
            "`observatory release approve VERSION --key FILE`"
        )


def _refuse_percentage(canary_percentage: int | None, strategy: Strategy) -> None:
    """Refuse the first step of a canary with another strategy."""
    if canary_percentage is not None and strategy != "canary":
        raise typer.BadParameter("--canary-percentage needs --strategy canary")


RemovedApprovedBy = Annotated[str | None, typer.Option(hidden=True, callback=_refuse_approved_by)]


@deploy_group.command()
def application(
    *,
    version: Annotated[str, typer.Option(help="Stored release, e.g. v0.3.0.")],
    strategy: Annotated[
        Strategy,
        typer.Option(help="blue-green: all traffic at once; canary: steps; rolling: batches."),
    ],
    target: Annotated[
        FleetName | None, typer.Option(help="Fleet to deploy to; default: idle fleet, or active if rolling.")
    ] = None,
    canary_percentage: CanaryOption = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Instances per batch of a rolling update; default 1.")
    ] = None,
    bake: BakeOption = None,
    health_check_timeout: Annotated[
        float, typer.Option(min=0, callback=finite, help="Seconds a fleet may take to become healthy.")
    ] = HEALTH_CHECK_S,
    skip_tests: SkipTestsOption = False,
    approved_by: RemovedApprovedBy = None,  # noqa: ARG001 - refused where it is given
    accept_drift: Annotated[
        bool, typer.Option("--accept-drift", help="Continue although the balancer's weights differ.")
    ] = False,
    wait: WaitOption = 0,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Run the checks and print the plan. Changes nothing.")
    ] = False,
    environment: EnvironmentOption = "local",
    output: OutputOption = Output.TABLE,
    engine: EngineOption = Engine.AUTO,
) -> None:
    """Deploy a version of the service under gates. A failed gate rolls it back."""
    _refuse_percentage(canary_percentage, strategy)
    if batch_size is not None and strategy != "rolling":
        raise typer.BadParameter("--batch-size needs --strategy rolling")
    workspace = operations.open_workspace(environment)
    options: DeliveryOptions = {
        "target": target,
        "canary_percentage": canary_percentage,
        "batch_size": 1 if batch_size is None else batch_size,
        "bake_seconds": bake,
        "health_check_seconds": health_check_timeout,
        "skip_tests": skip_tests,
        "accept_drift": accept_drift,
    }
    if dry_run:
        _show_plan(operations.plan_application(workspace, version=version, strategy=strategy, **options), output)
        return
    with ConsoleReporter() as report, operations.waiting_for_lock(wait):
        done = operations.deploy_application(
            workspace, version=version, strategy=strategy, choice=engine.value, report=report, **options
        )
    _show(done, output)


@app.command()
def rollback(
    *,
    method: Annotated[
        Method,
        typer.Option(help="Undo the deployment, return to --version, or restore the database."),
    ],
    version: Annotated[str | None, typer.Option(help="Version to return to, with --method application.")] = None,
    to_time: Annotated[str | None, typer.Option(help="Time to restore the database to, with its time zone.")] = None,
    backup_file: BackupFileOption = None,
    repository: SourceOption = None,
    undo: Annotated[bool, typer.Option("--undo", help="Undo the last rollback of the database.")] = False,
    emergency: Annotated[bool, typer.Option("--emergency", help="Skip confirmation, tests and gates.")] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Roll back although the previous fleet does not respond.")
    ] = False,
    wait: WaitOption = 0,
    reason: Annotated[str, typer.Option(help="Reason for the audit.")] = "requested by an operator",
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Skip the confirmation.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan. Changes nothing.")] = False,
    environment: EnvironmentOption = "local",
    output: OutputOption = Output.TABLE,
    engine: EngineOption = Engine.AUTO,
) -> None:
    """Undo the last deployment, return to a version, or restore the database.

    During a deployment the rollback takes over from it. A rollback of the database is refused then.
    """
    workspace = operations.open_workspace(environment)
    given = DatabaseOptions(to_time=to_time, backup_file=backup_file, undo=undo, repository=repository)
    given.check(needed=method is Method.DATABASE, others=version is not None or emergency or force)
    if method is Method.DATABASE:
        with operations.waiting_for_lock(wait):
            roll_back_database(workspace, given, reason=reason, yes=yes, dry_run=dry_run, engine=engine, output=output)
        return
    if (version is None) == (method is Method.APPLICATION):
        raise typer.BadParameter("--method application needs --version; --method blue-green does not take it")
    if dry_run:
        _plan_rollback(workspace, version, output, emergency=emergency, force=force)
        return
    only = None if yes or emergency else _confirmed(workspace, version)
    options: dict[str, Any] = {"reason": reason, "emergency": emergency, "force": force, "choice": engine.value}
    with ConsoleReporter() as report, operations.waiting_for_lock(wait):
        if version is None:
            done = operations.roll_back_application(workspace, only=only, report=report, **options)
        else:
            done = operations.roll_back_to_version(
                workspace, version=version, skip_tests=emergency, report=report, **options
            )
    _show(done, output)


def _confirmed(workspace: Workspace, version: str | None) -> str | None:
    """Prompt for confirmation; return the id of the last deployment, the only one that may be undone then.

    None where there is none, where it is not known, and with a version, which undoes whatever is under way.
    """
    question, last = f"Roll the stack {workspace.stack!r} back?", None
    with suppress(ObservatoryError):  # the rollback itself says what is wrong
        last = None if version else operations.last_deployment(workspace)
    if last and last.status != "rolled-back":
        question += f" This undoes the deployment of {last.version} to {last.target}, which is {last.status}."
    confirm(question)
    return last.id if last else None


@rollout.command()
def pause(environment: EnvironmentOption = "local", output: OutputOption = Output.TABLE) -> None:
    """Stay at the current step. The gates keep evaluating."""
    _control(environment, "pause", output)


@rollout.command()
def resume(environment: EnvironmentOption = "local", output: OutputOption = Output.TABLE) -> None:
    """Continue after a pause."""
    _control(environment, None, output)


@rollout.command()
def promote(environment: EnvironmentOption = "local", output: OutputOption = Output.TABLE) -> None:
    """End the bake of the current step now, unless its gate fails."""
    _control(environment, "promote", output)


@rollout.command()
def abort(environment: EnvironmentOption = "local", output: OutputOption = Output.TABLE) -> None:
    """Roll the deployment back."""
    _control(environment, "abort", output)


@releases.command(name="sign")
def sign_one(
    file: Annotated[Path, typer.Argument(help="Artifact; its manifest is NAME.json beside it.")],
    key: Annotated[
        Path | None,
        typer.Option(
            envvar="OBSERVATORY_SIGNING_KEY_FILE",
            help="Ed25519 private key in PEM; default: this checkout's own key.",
        ),
    ] = None,
    environment: EnvironmentOption = "local",
    output: OutputOption = Output.TABLE,
) -> None:
    """Sign a release. The signature is written into its manifest."""
    signed = operations.sign_release(operations.open_workspace(environment), file, key=key)
    if output is Output.JSON:
        print_json(signed.model_dump())
        return
    assert signed.signature is not None  # noqa: S101 - signing adds it
    print_result(f"Signed {signed.version} ({signed.sha256[:12]}) with key {signed.signature.key_id}")


@releases.command()
def add(
    file: Annotated[Path, typer.Argument(help="Artifact; its manifest is NAME.json beside it.")],
    manifest: Annotated[Path | None, typer.Option(help="Manifest; default: NAME.json beside the artifact.")] = None,
    environment: EnvironmentOption = "local",
    output: OutputOption = Output.TABLE,
) -> None:
    """Store a release. Its manifest must match and carry a trusted signature."""
    added = operations.add_release(operations.open_workspace(environment), file, manifest)
    if output is Output.JSON:
        print_json(added.model_dump())
        return
    print_result(f"Stored {added.version} ({added.sha256[:12]}), for schema {added.schema_min} to {added.schema_max}")


@releases.command(name="check")
def check_one(
    file: Annotated[Path, typer.Argument(help="Artifact; its manifest is NAME.json beside it.")],
    manifest: Annotated[Path | None, typer.Option(help="Manifest; default: NAME.json beside the artifact.")] = None,
    environment: EnvironmentOption = "local",
    output: OutputOption = Output.TABLE,
) -> None:
    """Run a release against the service contract, without a stack.

    Needs no signature. Exit code 1: a requirement failed.
    """
    with ConsoleReporter() as report:
        findings = operations.check_release(operations.open_workspace(environment), file, manifest, report=report)
    passed = not any(finding.outcome == "failed" for finding in findings)
    if output is Output.JSON:
        print_json({"passed": passed, "findings": [{**asdict(each), "place": each.place} for each in findings]})
    else:
        rows = [(each.outcome, each.place, each.requirement, each.detail) for each in findings]
        print_result(table(f"Contract of {file.name}", ("result", "section", "requirement", "found"), rows))
        counts = Counter(each.outcome for each in findings)
        print_result(", ".join(f"{count} {outcome}" for outcome, count in counts.items()))
    raise typer.Exit(DONE if passed else FAILED)


@releases.command(name="deploy")
def deploy_one(
    *,
    version: Annotated[str, typer.Argument(help="Stored release, e.g. v0.3.0.")],
    strategy: Annotated[Strategy, typer.Option(help="Same as for `deploy application`.")] = "blue-green",
    canary_percentage: CanaryOption = None,
    bake: BakeOption = None,
    skip_tests: SkipTestsOption = False,
    approved_by: RemovedApprovedBy = None,  # noqa: ARG001 - refused where it is given
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Run the checklist and print the plan. Changes nothing.")
    ] = False,
    wait: WaitOption = 0,
    environment: EnvironmentOption = "local",
    output: OutputOption = Output.TABLE,
    engine: EngineOption = Engine.AUTO,
) -> None:
    """Run the whole workflow: checklist, tests, backup, migrations, deployment under gates, verification.

    Exit code 1 also means: the version is deployed, but a check of the verification failed or is unknown.
    """
    _refuse_percentage(canary_percentage, strategy)
    workspace = operations.open_workspace(environment)
    options: DeliveryOptions = {
        "canary_percentage": canary_percentage,
        "bake_seconds": bake,
        "skip_tests": skip_tests,
    }
    if dry_run:
        with ConsoleReporter() as report:
            plan = operations.plan_release(workspace, version=version, strategy=strategy, report=report, **options)
        _show_release_plan(plan, output)
        raise typer.Exit(REFUSED if plan.objections else DONE)
    with ConsoleReporter() as report, operations.waiting_for_lock(wait):
        done = operations.deploy_release(
            workspace, version=version, strategy=strategy, choice=engine.value, report=report, **options
        )
    if output is Output.JSON:
        print_json({**asdict(done), "rollout": done.rollout.model_dump()})
    else:
        print_result(
            f"Backup: {done.backup_label or 'not needed'}; migrations applied: {', '.join(done.applied) or 'none'}"
        )
        _show(done.rollout, output)
        print_result(verification_view(done.verification))
    raise typer.Exit(DONE if done.verification.passed else FAILED)


@releases.command()
def approve(
    *,
    version: Annotated[str, typer.Argument(help="Stored release, e.g. v1.0.0.")],
    key: Annotated[Path, typer.Option(help="Your private key, of delivery.trusted_approvers.")],
    reason: Annotated[str, typer.Option(help="Reason for the audit.")] = "",
    days: Annotated[float, typer.Option(min=0.01, max=90, help="Days until the approval ends.")] = 7,
    environment: EnvironmentOption = "local",
    output: OutputOption = Output.TABLE,
) -> None:
    """Approve a release for a stack, signed with your key. Another person must deploy it."""
    workspace = operations.open_workspace(environment)
    approval = operations.approve_release(workspace, version, key=key, reason=reason, valid_days=days)
    if output is Output.JSON:
        print_json(approval.model_dump())
        return
    print_result(f"{approval.by} approved {approval.version} ({approval.sha256[:12]}) for {environment!r}")


@releases.command(name="list")
def list_all(environment: EnvironmentOption = "local", output: OutputOption = Output.TABLE) -> None:
    """List the stored releases and their signers."""
    kept = operations.list_releases(operations.open_workspace(environment))
    if output is Output.JSON:
        print_json([_release_json(each) for each in kept])
        return
    rows = [_release_row(each) for each in kept]
    print_result(
        table("Releases", ("version", "SHA-256", "schema", "signed by"), rows) if rows else "No release is stored."
    )
    for objection in (each.objection for each in kept if each.objection):
        print_error(objection)


def _release_json(found: StoredRelease) -> dict[str, Any]:
    manifest: dict[str, Any] = found.manifest.model_dump() if found.manifest else {"version": found.version}
    return {**manifest, "signer": found.signer, "objection": found.objection}


def _release_row(found: StoredRelease) -> tuple[str, ...]:
    manifest = found.manifest
    if manifest is None:
        return found.version, "damaged", "", ""
    schema = f"{manifest.schema_min} to {manifest.schema_max}"
    return manifest.version, manifest.sha256[:12], schema, found.signer or "no trusted key"


CONTROLS: Mapping[ControlRequest | None, str] = {
    "pause": "The running command has paused: it stays at this step, and its gate keeps evaluating.",
    None: "The running command continues.",
    "promote": "The running command ends the bake of this step.",
    "abort": "The running command rolls the deployment back.",
}


def _control(environment: str, request: ControlRequest | None, output: Output) -> None:
    """Send a control request, and print whether the running command has acknowledged it."""
    done = operations.control_rollout(operations.open_workspace(environment), request)
    if output is Output.JSON:
        print_json(
            {
                **done.rollout.model_dump(),
                "acknowledged": done.acknowledged,
                "replaced": done.replaced,
                "running": done.running,
                "last": done.last,
            }
        )
        return
    _show(done.rollout, output)
    print_result(f"\n{_answer(done, request)}")


def _followed(done: RolloutControl, request: ControlRequest | None) -> str:
    if request == "pause" and done.rollout.deployment and done.rollout.deployment.status == "preparing":
        return "The running command pauses before the first step: until `rollout resume` the version gets no traffic."
    return CONTROLS[request]


def _answer(done: RolloutControl, request: ControlRequest | None) -> str:
    if done.acknowledged:
        return _followed(done, request)
    word, deployment = request or "resume", done.rollout.deployment
    if deployment and deployment.ended:
        return f"Requested: {word}. The deployment of {deployment.version} ended before: it is {deployment.status}."
    if done.replaced:
        return f"Requested: {word}. Another operator's request has replaced it before the running command read it."
    if done.running:
        last = f"; its last event: {done.last}" if done.last else ""
        return f"Requested: {word}. The running command has not reached its next evaluation{last}"
    again = (
        f"`observatory deploy application --version {deployment.version} --strategy {deployment.strategy}`"
        if (deployment)
        else "the same command"
    )
    runs = (
        "No command runs this deployment"
        if done.running is False
        else "The database does not respond, so it is not certain that a command runs this deployment"
    )
    return f"Requested: {word}. {runs}: {again} continues it and reads the request."


def _show(done: RolloutDocument, output: Output) -> None:
    if output is Output.JSON:
        print_json(done.model_dump())
        return
    rows = [(name, done.fleet(name).versions, f"{done.fleet(name).weight} %") for name in FLEETS]
    print_result(table("Fleets", ("fleet", "version", "weight"), rows))
    if done.deployment:
        print_result(f"\n{done.deployment.version} to {done.deployment.target}: {done.deployment.status}")


def _plan_rollback(workspace: Workspace, version: str | None, output: Output, *, emergency: bool, force: bool) -> None:
    if version is not None:
        undone_first, planned = operations.plan_rollback_to_version(
            workspace, version=version, skip_tests=emergency, emergency=emergency, force=force
        )
        if output is Output.JSON:
            plans = {"undone": undone_first, "deployment": planned}
            print_json({name: plan and plan.model_dump() for name, plan in plans.items()})
        elif undone_first:
            print_result(
                f"Would undo {undone_first.version} on {undone_first.target}, then deploy {version}. "
                "Nothing was changed."
            )
        else:
            _show_plan(planned, output)
        return
    undone, healthy = operations.plan_rollback(workspace, force=force)
    if output is Output.JSON:
        print_json({"deployment": undone.model_dump(), "healthy": healthy})
        return
    health = "which is healthy" if healthy else "which is NOT healthy: see `observatory status`"
    print_result(
        f"Would undo {undone.version} on {undone.target}: {undone.source} gets all traffic, {health}. "
        "Nothing was changed."
    )


def _show_plan(planned: Deployment | None, output: Output) -> None:
    if output is Output.JSON:
        print_json(planned.model_dump() if planned else None)
    elif planned is None:
        print_result("This version is already active. Nothing to do.")
    else:
        print_result(_plan_in_words(planned))


def _show_release_plan(plan: ReleasePlan, output: Output) -> None:
    if output is Output.JSON:
        print_json({**plan.as_json(), "objections": plan.objections})
        return
    rows = [
        (each.name, Text("failed", style="red") if each.objection else Text("passed", style="green"), each.objection)
        for each in plan.checklist
    ]
    print_result(table("Checklist", ("check", "result", "reason"), rows))
    print_result(f"\nMigrations: {', '.join(plan.migrations) or 'none'}")
    if not plan.objections:
        _show_plan(plan.deployment, output)


def _plan_in_words(planned: Deployment) -> str:
    if planned.strategy == "rolling":
        route = f"to {planned.target} in batches of {planned.batch_size}"
    else:
        steps = ", ".join(f"{weight} %" for weight in planned.weights)
        route = f"to {planned.target} with traffic weights {steps}"
    gates = f"each step bakes for {planned.bake_s:g} s" if planned.gated else "without gates"
    verb = "continue to deploy" if planned.step >= 0 or planned.status != "preparing" else "deploy"
    return f"Would {verb} {planned.version} ({planned.strategy}) {route}; {gates}. Nothing was changed."
