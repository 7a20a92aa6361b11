"""Runs one Pulumi program for the language host: `launcher.py SETTINGS PROGRAM`.

Owns what Pulumi's own launcher does (sdk/python/cmd/pulumi-language-python-exec in its source): the SDK's settings and
configuration, the event loop, and the exit code.
"""

from __future__ import annotations

import asyncio
import json
import logging
import runpy
import sys
import traceback
from concurrent.futures import ThreadPoolExecutor

import pulumi
import pulumi.runtime

ERROR_SHOWN = 32  # the language host then adds no message of its own
THREADS_PER_STEP = 4  # as Pulumi's own launcher


async def run(program: str, parallel: int) -> None:
    """Run the program and wait for its resources."""

    def body() -> None:
        runpy.run_path(program, run_name="__main__")

    with ThreadPoolExecutor(max(parallel, 1) * THREADS_PER_STEP) as executor:
        asyncio.get_running_loop().set_default_executor(executor)
        await pulumi.runtime.run_in_stack(body)


def main(settings: str, program: str) -> int:
    """Return the exit code of the program."""
    arguments = json.loads(settings)
    pulumi.runtime.set_all_config(pulumi.runtime.get_config_env(), pulumi.runtime.get_config_secret_keys_env())
    pulumi.runtime.configure(pulumi.runtime.Settings(**arguments))
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)  # a failed program leaves futures unawaited, by design
    sys.argv = [program]
    try:
        asyncio.run(run(program, arguments["parallel"]))
    except pulumi.RunError as error:
        pulumi.log.error(str(error))
        return 1
    except Exception:
        pulumi.log.error(f"Program failed with an unhandled exception:\n{traceback.format_exc()}")
        return ERROR_SHOWN
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
