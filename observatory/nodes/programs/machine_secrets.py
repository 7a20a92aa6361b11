"""Writes the secret files of this machine, from one secret of AWS Secrets Manager.

Runs before the daemons start, and each minute: a rotated password is there within a minute, and the services that read
it at a reload are reloaded. A file that says what it should is left alone.

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
    parser.add_argument("--reload", action="append", default=[], help="service to reload after a change")
    arguments = parser.parse_args()
    files = json.loads(fetch(arguments.secret, arguments.region))
    changed = [path for path, content in files.items() if write(Path(path), content, arguments.owner)]
    for service in arguments.reload if changed else ():
        # At a boot it does not run yet, and reads the file when it starts.
        subprocess.run(["systemctl", "--no-block", "try-reload-or-restart", service], check=True)


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


def write(path: Path, content: str, owner: str) -> bool:
    """Write a file whole or not at all, for its owner's eyes only; return whether it was another one."""
    if path.exists() and path.read_text(encoding="utf-8") == content:
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, partial = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # mode 0600
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(content)
    os.chown(partial, pwd.getpwnam(owner).pw_uid, grp.getgrnam(owner).gr_gid)
    Path(partial).replace(path)
    return True


if __name__ == "__main__":
    main()
