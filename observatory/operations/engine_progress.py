"""The progress of an engine's run: each step on a resource is a task, each warning of a provider a warning."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from observatory.engines import embedded as engine
from observatory.progress import Phase, Progress, Reporter, tell

COMPONENTS = ("observatory:", "pulumi:")  # types of component resources
PHASES = {"started": Phase.STARTED, "done": Phase.DONE, "failed": Phase.FAILED}


@contextmanager
def report_steps(report: Reporter, command: str) -> Iterator[engine.OnEvent]:
    """Yield the handler of an engine's events; component resources are not reported, since they take no time.

    Where the run is interrupted, its error names the finished and the unfinished steps and the next command.
    """
    done: list[str] = []
    begun: dict[str, None] = {}

    def on_event(event: engine.Event) -> None:
        if isinstance(event, engine.DiagnosticEvent):
            _warn(report, event)
        elif event.step.operation not in ("same", "refresh") and not event.step.type.startswith(COMPONENTS):
            name = f"{event.step.operation} {event.step.type.rpartition(':')[2]} {event.step.name}"
            begun.pop(name, None)
            if event.status == "started":
                begun[name] = None
            elif event.status == "done":
                done.append(name)
            tell(report, Progress(task=name, phase=PHASES[event.status], seconds=event.step.seconds))

    try:
        yield on_event
    except engine.Interrupted as error:
        error.args = (_summary(str(error), done, list(begun), command),)
        raise


def _warn(report: Reporter, event: engine.DiagnosticEvent) -> None:
    """Report a warning or an error of a resource; informative messages are dropped."""
    if event.severity in ("warning", "error"):
        resource = f"{event.urn.rpartition('::')[2]}: " if event.urn else ""
        tell(report, Progress(task=resource + event.message, phase=Phase.WARNED))


def _summary(reason: str, done: list[str], begun: list[str], command: str) -> str:
    lines = [reason, f"done: {len(done)} steps, the last {done[-1]}" if done else "done: no step"]
    lines += [f"unfinished: {', '.join(begun)}"] if begun else []
    remedy = f"next: `observatory {command}` continues"
    return "\n  ".join([*lines, remedy + ("; `observatory down` removes the stack" if command == "up" else "")])
