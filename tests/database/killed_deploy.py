"""A deployment that kills its own process after a number of statements; `test_killed_deployments` runs it."""

import os
import signal
import sys
from pathlib import Path

from observatory.database import deploy
from observatory.database.migrations.events import Event


def main(conninfo: str, directory: str, boundary: str) -> None:
    remaining = int(boundary)

    def kill(event: Event) -> None:
        nonlocal remaining
        if event.kind in {"applying", "statement"}:
            remaining -= 1
        if remaining < 0:
            os.kill(os.getpid(), signal.SIGKILL)

    deploy(conninfo, migrations=Path(directory), actor="killed", deployment_id="killed", retry=0, on_event=kill)


if __name__ == "__main__":
    main(*sys.argv[1:])
