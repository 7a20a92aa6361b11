"""The commands that bring versions of the service to the fleets, and take them back."""

from __future__ import annotations

from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from observatory import operations
from observatory.cli.app import (
    Engine,
    EngineOption,
    EnvironmentOption,
    Output,
    OutputOption,
    app,
    confirm,
    deploy_group,
    print_json,
)
from observatory.cli.terminal import ConsoleReporter, answer, complain, table
from observatory.cli.verify import verification_view
from observatory.documents.rollout import HEALTH_CHECK_S, Deployment, RolloutDocument, Strategy
from observatory.errors import DONE, FAILED
from observatory.settings import FLEETS, FleetName

if TYPE_CHECKING:
    from observatory.operations.delivery import DeliveryOptions
    from observatory.workspace import Workspace

releases = typer.Typer(help="Keep versions of the service that may be deployed.", no_args_is_help=True)
app.add_typer(releases, name="release")
rollout = typer.Typer(help="Steer the deployment that runs at another terminal.", no_args_is_help=True)
app.add_typer(rollout, name="rollout")


class Method(StrEnum):
    """What is rolled back."""

    BLUE_GREEN = "blue-green"
    APPLICATION = "application"


@deploy_group.command()
def application(
    *,
    version: Annotated[str, typer.Option(help="A kept release, as v0.2.0.")],
    strategy: Annotated[
        Strategy,
        typer.Option(help="blue-green moves all traffic at once, canary by steps; rolling takes instances by turns."),
    ],
    target: Annotated[
        FleetName | None, typer.Option(help="The fleet to use; the idle one by default, for rolling the serving.")
    ] = None,
    canary_percentage: Annotated[int | None, typer.Option(help="First step of a canary, in percent.")] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Instances that rolling takes at a time; by default 1.")
    ] = None,
    bake: Annotated[float | None, typer.Option(min=0, help="Seconds that each step is watched.")] = None,
    health_check_timeout: Annotated[
        float, typer.Option(min=0, help="Seconds that a fleet gets to be ready before it takes more traffic.")
    ] = HEALTH_CHECK_S,
    skip_tests: Annotated[bool, typer.Option(help="Do not try the version apart first; this is recorded.")] = False,
    approved_by: Annotated[str | None, typer.Option(help="Who approved it in the pipeline that deploys.")] = None,
    accept_drift: Annotated[bool, typer.Option(help="Go on although somebody changed the balancer's weights.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check all, say what would be done, change nothing.")
    ] = False,
    environment: EnvironmentOption = "local",
    output: OutputOption = Output.TABLE,
    engine: EngineOption = Engine.AUTO,
) -> None:
    """Bring a version to the idle fleet, or to a fleet's instances by turns, under gates; any trouble rolls it back."""
    if canary_percentage is not None and strategy != "canary":
        raise typer.BadParameter("--canary-percentage goes with --strategy canary")
    if batch_size is not None and strategy != "rolling":
        raise typer.BadParameter("--batch-size goes with --strategy rolling")
    workspace = operations.open_workspace(environment)
    options: DeliveryOptions = {
        "target": target,
        "canary_percentage": canary_percentage,
        "batch_size": 1 if batch_size is None else batch_size,
        "bake_seconds": bake,
        "health_check_seconds": health_check_timeout,
        "skip_tests": skip_tests,
        "approved_by": approved_by,
        "accept_drift": accept_drift,
    }
    if dry_run:
        _show_plan(operations.plan_application(workspace, version=version, strategy=strategy, **options), output)
        return
    with ConsoleReporter() as report:
        done = operations.deploy_application(
            workspace, version=version, strategy=strategy, choice=engine.value, report=report, **options
        )
    _show(done, output)


@app.command()
def rollback(
    *,
    method: Annotated[Method, typer.Option(help="blue-green: undo the last deployment; application: a version.")],
    version: Annotated[str | None, typer.Option(help="With --method application: the version to go back to.")] = None,
    emergency: Annotated[bool, typer.Option(help="No questions, the fastest safe path.")] = False,
    reason: Annotated[str, typer.Option(help="For the record.")] = "asked for",
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done, change nothing.")] = False,
    environment: EnvironmentOption = "local",
    output: OutputOption = Output.TABLE,
    engine: EngineOption = Engine.AUTO,
) -> None:
    """Undo the last deployment, or bring a version back; also while a deployment runs, taking over from it."""
    workspace = operations.open_workspace(environment)
    if (version is None) == (method is Method.APPLICATION):
        raise typer.BadParameter("--version goes with --method application, and only with it")
    if dry_run:
        _plan_rollback(workspace, version, output)
        return
    if not (yes or emergency):
        confirm(f"Roll the stack {environment!r} back?")
    with ConsoleReporter() as report:
        if method is Method.BLUE_GREEN:
            done = operations.roll_back_application(
                workspace, reason=reason, emergency=emergency, choice=engine.value, report=report
            )
        else:
            assert version is not None  # noqa: S101 - checked above
            done = operations.roll_back_to_version(
                workspace,
                version=version,
                reason=reason,
                skip_tests=emergency,
                choice=engine.value,
                report=report,
            )
    _show(done, output)


@rollout.command()
def pause(environment: EnvironmentOption = "local", output: OutputOption = Output.TABLE) -> None:
    """Stay at the present step; gates go on watching."""
    _show(operations.control_rollout(operations.open_workspace(environment), "pause"), output)


@rollout.command()
def resume(environment: EnvironmentOption = "local", output: OutputOption = Output.TABLE) -> None:
    """Go on after a pause."""
    _show(operations.control_rollout(operations.open_workspace(environment), None), output)


@rollout.command()
def promote(environment: EnvironmentOption = "local", output: OutputOption = Output.TABLE) -> None:
    """End the present step's bake now, unless its gate fails."""
    _show(operations.control_rollout(operations.open_workspace(environment), "promote"), output)


@rollout.command()
def abort(environment: EnvironmentOption = "local", output: OutputOption = Output.TABLE) -> None:
    """Roll the deployment back."""
    _show(operations.control_rollout(operations.open_workspace(environment), "abort"), output)


@releases.command(name="sign")
def sign_one(
    file: Annotated[Path, typer.Argument(help="The artifact; its manifest lies beside it as NAME.json.")],
    key: Annotated[
        Path | None,
        typer.Option(
            envvar="OBSERVATORY_SIGNING_KEY_FILE",
            help="An Ed25519 private key in PEM; by default the checkout's own, which stacks on this machine trust.",
        ),
    ] = None,
    environment: EnvironmentOption = "local",
    output: OutputOption = Output.TABLE,
) -> None:
    """Sign a release where it was built: its manifest gets the signature."""
    signed = operations.sign_release(operations.open_workspace(environment), file, key=key)
    if output is Output.JSON:
        print_json(signed.model_dump())
        return
    assert signed.signature is not None  # noqa: S101 - it has just got one
    answer(f"Signed {signed.version} ({signed.sha256[:12]}) by the key {signed.signature.key_id}")


@releases.command()
def add(
    file: Annotated[Path, typer.Argument(help="The artifact; its manifest lies beside it as NAME.json.")],
    manifest: Annotated[Path | None, typer.Option(help="The manifest, where it lies elsewhere.")] = None,
    environment: EnvironmentOption = "local",
    output: OutputOption = Output.TABLE,
) -> None:
    """Keep a release whose manifest fits it and is signed by a trusted key."""
    added = operations.add_release(operations.open_workspace(environment), file, manifest)
    if output is Output.JSON:
        print_json(added.model_dump())
        return
    answer(f"Kept {added.version} ({added.sha256[:12]}), for schema {added.schema_min} to {added.schema_max}")


@releases.command(name="deploy")
def deploy_one(
    *,
    version: Annotated[str, typer.Argument(help="A kept release, as v0.2.0.")],
    strategy: Annotated[Strategy, typer.Option(help="As of `deploy application`.")] = "blue-green",
    canary_percentage: Annotated[int | None, typer.Option(help="First step of a canary, in percent.")] = None,
    bake: Annotated[float | None, typer.Option(min=0, help="Seconds that each step is watched.")] = None,
    skip_tests: Annotated[bool, typer.Option(help="Do not try the version apart first; this is recorded.")] = False,
    approved_by: Annotated[str | None, typer.Option(help="Who approved it in the pipeline that deploys.")] = None,
    environment: EnvironmentOption = "local",
    output: OutputOption = Output.TABLE,
    engine: EngineOption = Engine.AUTO,
) -> None:
    """Deploy by the standard workflow: checklist, tests, backup, migrations, the service under gates, verification.

    Exit code 1 also where the version serves, but monitoring is ill or something could not be looked at.
    """
    if canary_percentage is not None and strategy != "canary":
        raise typer.BadParameter("--canary-percentage goes with --strategy canary")
    with ConsoleReporter() as report:
        done = operations.deploy_release(
            operations.open_workspace(environment),
            version=version,
            strategy=strategy,
            canary_percentage=canary_percentage,
            bake_seconds=bake,
            skip_tests=skip_tests,
            approved_by=approved_by,
            choice=engine.value,
            report=report,
        )
    if output is Output.JSON:
        print_json({**asdict(done), "rollout": done.rollout.model_dump()})
    else:
        answer(f"Backup {done.backup_label or 'made before'}; migrations applied: {', '.join(done.applied) or 'none'}")
        _show(done.rollout, output)
        answer(verification_view(done.verification))
    raise typer.Exit(DONE if done.verification.passed else FAILED)


@releases.command()
def approve(
    version: Annotated[str, typer.Argument(help="A kept release, as v1.0.0.")],
    reason: Annotated[str, typer.Option(help="For the record.")] = "",
    environment: EnvironmentOption = "local",
    output: OutputOption = Output.TABLE,
) -> None:
    """Approve a release for a stack; another person deploys it."""
    approval = operations.approve_release(operations.open_workspace(environment), version, reason=reason)
    if output is Output.JSON:
        print_json(approval.model_dump())
        return
    answer(f"{approval.by} has approved {approval.version} ({approval.sha256[:12]}) for {environment!r}")


@releases.command(name="list")
def list_all(environment: EnvironmentOption = "local", output: OutputOption = Output.TABLE) -> None:
    """List the kept releases, and who signed them."""
    kept = operations.list_releases(operations.open_workspace(environment))
    if output is Output.JSON:
        print_json(
            [{**each.manifest.model_dump(), "signer": each.signer, "objection": each.objection} for each in kept]
        )
        return
    rows = [
        (each.version, each.sha256[:12], f"{each.schema_min} to {each.schema_max}", found.signer or "nobody trusted")
        for found in kept
        for each in (found.manifest,)
    ]
    answer(
        table("Releases", ("version", "SHA-256", "schema", "signed by"), rows) if rows else "No release is kept yet."
    )
    for objection in (each.objection for each in kept if each.objection):
        complain(objection)


def _show(done: RolloutDocument, output: Output) -> None:
    if output is Output.JSON:
        print_json(done.model_dump())
        return
    rows = [(name, done.fleet(name).versions, f"{done.fleet(name).weight} %") for name in FLEETS]
    answer(table("Fleets", ("fleet", "version", "weight"), rows))
    if done.deployment:
        answer(f"\n{done.deployment.version} to {done.deployment.target}: {done.deployment.status}")


def _plan_rollback(workspace: Workspace, version: str | None, output: Output) -> None:
    if version is not None:
        undone_first, planned = operations.plan_rollback_to_version(workspace, version=version)
        if output is Output.JSON:
            plans = {"undone": undone_first, "deployment": planned}
            print_json({name: plan and plan.model_dump() for name, plan in plans.items()})
        elif undone_first:
            answer(
                f"Would undo {undone_first.version} on {undone_first.target}, then bring {version}. "
                "Nothing was changed."
            )
        else:
            _show_plan(planned, output)
        return
    undone, healthy = operations.plan_rollback(workspace)
    if output is Output.JSON:
        print_json({"deployment": undone.model_dump(), "healthy": healthy})
        return
    health = "which is healthy" if healthy else "which is NOT healthy: look at `observatory status`"
    answer(
        f"Would undo {undone.version} on {undone.target}: {undone.source} gets all traffic, {health}. "
        "Nothing was changed."
    )


def _show_plan(planned: Deployment | None, output: Output) -> None:
    if output is Output.JSON:
        print_json(planned.model_dump() if planned else None)
    elif planned is None:
        answer("This version serves already: nothing would be done.")
    else:
        answer(_plan_in_words(planned))


def _plan_in_words(planned: Deployment) -> str:
    if planned.strategy == "rolling":
        way = f"to {planned.target}, {planned.batch_size} of its instances at a time"
    else:
        steps = ", ".join(f"{weight} %" for weight in planned.weights)
        way = f"to {planned.target}, which gets {steps} of the traffic"
    watched = f"each step is watched for {planned.bake_s:g} s" if planned.gated else "no gate is asked"
    begun = "go on to bring" if planned.step >= 0 or planned.status != "preparing" else "bring"
    return f"Would {begun} {planned.version} by {planned.strategy} {way}; {watched}. Nothing was changed."
