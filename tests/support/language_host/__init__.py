"""A language host for Python, so that a Pulumi CLI built from source can run this project's program in tests.

Pulumi's own host is part of the CLI's download, which no package registry serves. This one is for tests only: users
install the CLI with its own host. `bin` holds what the CLI looks up on PATH.
"""

from pathlib import Path

BIN = Path(__file__).with_name("bin")
