"""Runs one operation of the engine, for conformance tests and benchmarks. The product's command is ``observatory``."""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from observatory.engines.embedded import (
    ConfigError,
    EngineError,
    Event,
    StackOptions,
    StepEvent,
    destroy,
    preview,
    refresh,
    up,
)

_OPERATIONS = {"preview": preview, "up": up, "refresh": refresh, "destroy": destroy}


def main(arguments: list[str] | None = None) -> int:
    """Run one operation; return the exit code (0 done, 1 failed)."""
    parser = argparse.ArgumentParser(prog="python -m observatory.engines.embedded", description=__doc__)
    parser.add_argument("operation", choices=_OPERATIONS)
    parser.add_argument(
        "--cwd", type=Path, default=Path.cwd(), help="directory of Pulumi.yaml (default: the current one)"
    )
    parser.add_argument("--stack", required=True, help="name of the stack")
    parser.add_argument("--json", action="store_true", help="print one JSON document on stdout, and nothing else")
    parsed = parser.parse_args(arguments)
    report = os.fdopen(os.dup(1), "w")
    if parsed.json:
        os.dup2(2, 1)  # what the program and its children print goes to stderr
    document = _run(parsed.operation, parsed.cwd, parsed.stack)
    with report:
        json.dump(document, report, indent=None if parsed.json else 2)
    return 1 if "error" in document else 0


def _run(operation: str, cwd: Path, stack: str) -> dict[str, Any]:
    error = {}
    try:
        options = StackOptions(cwd=cwd, stack=stack, backend=_backend(), passphrase=_passphrase())
        result = _OPERATIONS[operation](options, on_event=_print)
    except EngineError as failure:
        sys.stderr.write(f"error: {failure}\n")
        error = {"error": {"type": type(failure).__name__, "message": str(failure)}}
        if failure.result is None:
            return error
        result = failure.result
    return {**asdict(result), "summary": result.summary, **error}


def _backend() -> Path:
    url = os.environ.get("PULUMI_BACKEND_URL", "")
    if not url.startswith("file://"):
        raise ConfigError(f"PULUMI_BACKEND_URL is {url!r}; set it to a file:// URL, which the embedded engine needs")
    return Path(unquote(url.removeprefix("file://").partition("?")[0])).expanduser()


def _passphrase() -> str:
    text, file = os.environ.get("PULUMI_CONFIG_PASSPHRASE"), os.environ.get("PULUMI_CONFIG_PASSPHRASE_FILE")
    if text is None and not file:
        raise ConfigError("no passphrase: set PULUMI_CONFIG_PASSPHRASE or PULUMI_CONFIG_PASSPHRASE_FILE")
    try:
        return text or (Path(file).read_text().strip() if file else "")
    except OSError as error:
        raise ConfigError(f"cannot read the file in PULUMI_CONFIG_PASSPHRASE_FILE: {error}") from error


def _print(event: Event) -> None:
    if not isinstance(event, StepEvent):
        sys.stderr.write(f"{event.severity}: {event.message}\n")
    elif event.status != "started" and event.step.operation != "same":
        step = event.step
        sys.stderr.write(f"{step.operation} {step.type} {step.name} {event.status} ({step.seconds:.2f} s)\n")


if __name__ == "__main__":
    sys.exit(main())
