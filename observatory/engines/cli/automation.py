"""The operations of the embedded engine, run by the Pulumi CLI through its Automation API.

Returns the same results and raises the same errors as the embedded engine. `observatory.operations` chooses the engine.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from observatory.engines.cli.events import MASK, EventCollector
from observatory.engines.embedded import (
    EngineError,
    Interrupted,
    LockedError,
    OnEvent,
    PassphraseError,
    ProgramError,
    Result,
    StackOptions,
    StateError,
    StepFailed,
    clear_locks,
    exists,
    init,
)
from observatory.engines.embedded.secrets import wrong_passphrase
from observatory.engines.providers.plugin import install, missing_plugins

SALT, _SECURE = "encryptionsalt", "secure:"  # of Pulumi.<stack>.yaml
IN_URL = str.maketrans({"%": "%25", "?": "%3F", "#": "%23"})
_INCOMPLETE_HASH = "failed to load checkpoint: EOF"
_WRONG_KEY = "incorrect passphrase"


def find_cli() -> str | None:
    """Return the path of the `pulumi` on PATH, or None."""
    return shutil.which("pulumi")


def environment(backend: Path, *, plugins: bool = False) -> dict[str, str]:
    """Return the environment variables with which `pulumi` works on the same state, without the passphrase.

    Args:
        backend: The directory of the `file://` backend.
        plugins: Whether the CLI may download plugins. A stack of dynamic resources needs none; without downloads, a
            missing plugin fails at once.
    """
    variables = {
        "PULUMI_BACKEND_URL": backend_url(backend),
        # The salt of a stack that the embedded engine created is in its state, not in the tracked configuration file.
        "PULUMI_FALLBACK_TO_STATE_SECRETS_MANAGER": "true",
        "PULUMI_SKIP_UPDATE_CHECK": "true",
        **_plugins(backend.parent / "plugins"),
    }
    return variables if plugins else {**variables, "PULUMI_DISABLE_AUTOMATIC_PLUGIN_ACQUISITION": "true"}


def backend_url(backend: Path) -> str:
    """Return the URL of a backend directory; the CLI decodes it, and takes a query and a fragment off."""
    return f"file://{str(backend).translate(IN_URL)}"


def _plugins(directory: Path) -> dict[str, str]:
    """Return PATH with the in-tree providers at its end if a plugin is missing; else nothing."""
    if not missing_plugins():
        return {}
    return {"PATH": os.pathsep.join([os.environ.get("PATH", os.defpath), str(install(directory))])}


def preview(options: StackOptions, *, on_event: OnEvent | None = None) -> Result:
    """Return what `up` would do; see `observatory.engines.embedded.preview`."""
    return _run(options, on_event, lambda stack, **common: stack.preview(**common))


def up(options: StackOptions, *, on_event: OnEvent | None = None) -> Result:
    """Bring the stack to what the program declares; see `observatory.engines.embedded.up`."""
    end_killed_run(options, on_event)
    return _run(options, on_event, lambda stack, **common: stack.up(show_secrets=False, **common))


def destroy(options: StackOptions, *, on_event: OnEvent | None = None) -> Result:
    """Delete all resources; see `observatory.engines.embedded.destroy`."""
    end_killed_run(options, on_event)
    return _run(options, on_event, lambda stack, **common: stack.destroy(**common))


def remove_salt(config_file: Path) -> None:
    """Remove the salt that the CLI writes into the tracked configuration file; the state has it too (ADR 5).

    In a file with secrets it stays: before the first `up` only the file has it.
    """
    text = config_file.read_text(encoding="utf-8") if config_file.exists() else ""
    if _SECURE in text:
        return
    lines = text.splitlines(keepends=True)
    kept = [line for line in lines if not line.startswith(f"{SALT}:")]
    if kept != lines:
        config_file.write_text("".join(kept), encoding="utf-8")


def remove_unused_salt(options: StackOptions) -> None:
    """Remove the salt of a stack file whose stack does not exist, if the file has no secret: it fits no passphrase.

    A stack file that was copied from another checkout has such a salt.
    """
    if not exists(options):
        remove_salt(_config_file(options))


@contextmanager
def _copied(config_file: Path) -> Iterator[str]:
    """Yield a copy of the tracked configuration file: the CLI adds the salt to its file and formats it again."""
    remove_salt(config_file)
    with tempfile.TemporaryDirectory(prefix="observatory-config-") as directory:
        copy = Path(directory) / config_file.name
        copy.write_bytes(config_file.read_bytes() if config_file.exists() else b"")
        yield str(copy)


def _config_file(options: StackOptions) -> Path:
    return options.config_file or options.cwd / f"Pulumi.{options.stack}.yaml"


def end_killed_run(options: StackOptions, on_event: OnEvent | None) -> None:
    """Remove the lock of a CLI that was killed, and end the plugins of killed CLIs: one may still work on a step.

    Raises:
        LockedError: another run holds the stack's lock.
    """
    from observatory.engines.cli.orphans import end_plugins  # noqa: PLC0415 - psutil only where it is used

    for holder in clear_locks(options, on_event=on_event):
        from observatory.engines.cli.command import end_orphans  # noqa: PLC0415 - imports the SDK

        end_orphans(holder)
    end_plugins(options.cwd.resolve())


def _run(options: StackOptions, on_event: OnEvent | None, operate: Callable[..., Any]) -> Result:
    from pulumi import automation  # noqa: PLC0415 - half a second that the embedded engine does not need

    from observatory.engines.cli.command import SessionCommand  # noqa: PLC0415 - imports the SDK

    class Workspace(automation.LocalWorkspace):
        """Selects no stack: every command names its own, and the user's selection stays."""

        def select_stack(self, stack_name: str) -> None:
            """Do nothing."""

    started = time.monotonic()
    collector = EventCollector(on_event or (lambda _event: None))
    init(options)  # `pulumi stack init` would select the stack
    variables = {
        **environment(options.backend, plugins=options.plugins),
        "PULUMI_CONFIG_PASSPHRASE": options.passphrase,
    }
    command = SessionCommand()
    try:
        with command.stoppable(), _copied(_config_file(options)) as config_file:
            workspace = Workspace(work_dir=str(options.cwd), env_vars=variables, pulumi_command=command)
            stack = automation.Stack.select(options.stack, workspace)
            operate(stack, on_event=collector.take, color="never", config_file=config_file)
            outputs = stack.outputs()
    except automation.errors.ConcurrentUpdateError as error:
        raise LockedError(_error_lines(str(error))) from error
    except automation.errors.CommandError as error:
        raise _failure(options, collector, str(error)) from error
    except Interrupted as error:
        error.result = Result(steps=tuple(collector.steps))
        raise
    return Result(
        steps=tuple(collector.steps),
        outputs={name: MASK if output.secret else output.value for name, output in outputs.items()},
        duration=time.monotonic() - started,
    )


def _failure(options: StackOptions, collector: EventCollector, text: str) -> EngineError:
    reason = "\n".join(dict.fromkeys(collector.errors)) or _error_lines(text)
    error: EngineError = ProgramError(reason)
    if _WRONG_KEY in reason:
        error = PassphraseError(wrong_passphrase(options.passphrase_file))
    if _INCOMPLETE_HASH in reason:
        error = StateError(
            f"the Pulumi CLI cannot read the state: {reason}. A killed CLI left an incomplete hash of it. The state is "
            "complete: `observatory up` removes the hash with that run's lock, and continues"
        )
    elif step := collector.failed:
        message = f"{step.operation} {step.type} {step.name}: {reason}"
        error = StepFailed(message, urn=step.urn, operation=step.operation, detail=reason)
    error.result = Result(steps=tuple(collector.steps))
    return error


def _error_lines(text: str) -> str:
    """Return the lines with the CLI's errors, or the whole text if there are none."""
    lines = [line.strip() for line in text.splitlines() if "error:" in line]
    return "\n".join(lines) or text.strip()
