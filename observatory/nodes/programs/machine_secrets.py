"""Writes the secret files of this machine, from one secret of AWS Secrets Manager, before its daemons start.

The secret is a JSON object of contents by absolute path. It is read by the machine's own role through the AWS CLI, so
that no secret is in the machine's user data. Uses the standard library alone: it runs on a bare machine.
"""

import argparse
import grp
import json
import os
import pwd
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ATTEMPTS, PAUSE_S = 20, 3  # the role's credentials and the way out may take half a minute after a boot


def main() -> None:
    """Fetch and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--secret", required=True, help="ARN of the secret")
    parser.add_argument("--region", required=True)
    parser.add_argument("--owner", required=True, help="user and group of the files")
    arguments = parser.parse_args()
    for path, content in json.loads(fetch(arguments.secret, arguments.region)).items():
        write(Path(path), content, arguments.owner)


def fetch(secret: str, region: str) -> str:
    """Return the secret's value; ends the program with the CLI's words when it is not to be had."""
    command = ["aws", "secretsmanager", "get-secret-value", "--secret-id", secret, "--region", region]
    command += ["--query", "SecretString", "--output", "text"]
    for attempt in range(1, ATTEMPTS + 1):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            return done.stdout
        if attempt < ATTEMPTS:
            time.sleep(PAUSE_S)
    sys.exit(f"{secret} cannot be read, {ATTEMPTS} attempts: {done.stderr.strip()}")


def write(path: Path, content: str, owner: str) -> None:
    """Write a file whole or not at all, for its owner's eyes only."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, partial = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # mode 0600
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(content)
    os.chown(partial, pwd.getpwnam(owner).pw_uid, grp.getgrnam(owner).gr_gid)
    Path(partial).replace(path)


if __name__ == "__main__":
    main()
