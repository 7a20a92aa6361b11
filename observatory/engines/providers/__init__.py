"""Providers of Pulumi packages that are served in-tree, where their plugins cannot be downloaded.

Each has the plugin's own resource types, inputs, outputs and ids, so that a stack may move between the two. `server`
runs one as a plugin for the Pulumi CLI.
"""

from collections.abc import Callable, Mapping

from observatory.engines.embedded.provider import Provider


def postgresql() -> Provider:
    """Make the provider of `pulumi_postgresql`."""
    from observatory.engines.providers.postgresql import PostgresqlProvider  # noqa: PLC0415 - psycopg only where it is used

    return PostgresqlProvider()


IN_TREE: Mapping[str, Callable[[], Provider]] = {"postgresql": postgresql}
