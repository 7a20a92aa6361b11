"""A dump that kills its own process at a step; `test_dump` runs it."""

import json
import os
import signal
import sys
from pathlib import Path

from observatory.backups.dump import create_dump
from observatory.backups.dump_server import DumpServer
from observatory.runtime import Sandbox


def main(step: str, server: str, target: str) -> None:
    def kill(reported: str) -> None:
        if reported == step:
            os.kill(os.getpid(), signal.SIGKILL)

    found = json.loads(server)
    sandbox = Sandbox(Path(found["home"]), Path(found["rootfs"]))
    create_dump(
        DumpServer(sandbox=sandbox, admin=found["admin"], socket="/srv/run", port=found["port"]),
        found["database"],
        Path(target),
        key=found["key"],
        report=kill,
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
