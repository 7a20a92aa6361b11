"""``python -m observatory.engine``: drives the engine alone, for conformance tests and benchmarks.

Owns arguments and plain printing. The product's own command is ``observatory``.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from observatory.engine import EngineError, Event, Result, StackOptions, StepEvent, destroy, preview, refresh, up

_OPERATIONS = {"preview": preview, "up": up, "refresh": refresh, "destroy": destroy}


def main(arguments: list[str] | None = None) -> int:
    """Run one operation; return the exit code (0 done, 1 failed)."""
    parser = argparse.ArgumentParser(prog="python -m observatory.engine", description=__doc__)
    parser.add_argument("operation", choices=_OPERATIONS)
    parser.add_argument("--cwd", type=Path, default=Path.cwd(), help="the project's directory")
    parser.add_argument("--stack", required=True)
    parser.add_argument("--config-file", type=Path)
    parser.add_argument("--parallel", type=int, default=StackOptions.parallel)
    parser.add_argument("--json", action="store_true", help="print one JSON document, and nothing else, on stdout")
    chosen = parser.parse_args(arguments)
    answer = os.fdopen(os.dup(1), "w")
    if chosen.json:
        os.dup2(2, 1)  # whatever the program or its children print goes to stderr
    with answer:
        return _run(chosen, answer)


def _run(chosen: argparse.Namespace, answer: Any) -> int:
    error: EngineError | None = None
    try:
        options = StackOptions.from_environment(
            chosen.cwd, chosen.stack, config_file=chosen.config_file, parallel=chosen.parallel
        )
        result: Result | None = _OPERATIONS[chosen.operation](options, on_event=_print)
    except EngineError as failure:
        error, result = failure, failure.result
        sys.stderr.write(f"error: {failure}\n")
    if chosen.json:
        json.dump(_document(result, error), answer)
    elif result is not None:
        answer.write(f"{result.summary} in {result.duration:.1f} s\n{json.dumps(result.outputs, indent=2)}\n")
    return 0 if error is None else 1


def _document(result: Result | None, error: EngineError | None) -> dict[str, Any]:
    document = asdict(result) | {"summary": result.summary} if result else {}
    return document | ({"error": {"type": type(error).__name__, "message": str(error)}} if error else {})


def _print(event: Event) -> None:
    if not isinstance(event, StepEvent):
        text = f"{event.severity}: {event.message}"
    elif event.status == "started" or event.step.operation == "same":
        return
    else:
        text = f"{event.step.operation} {event.step.type} {event.step.name} {event.status} ({event.step.seconds:.2f} s)"
    sys.stderr.write(f"{text} {event.message}\n" if isinstance(event, StepEvent) else f"{text}\n")


if __name__ == "__main__":
    sys.exit(main())
