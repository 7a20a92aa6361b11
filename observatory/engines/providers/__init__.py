"""In-tree providers of Pulumi packages, for machines that cannot download the packages' plugins.

Each has the plugin's resource types, inputs, outputs and IDs, so that a stack can move between the two. `server` runs a
provider as a plugin of the Pulumi CLI.
"""

from collections.abc import Callable, Mapping

from observatory.engines.embedded.provider import Provider


def postgresql() -> Provider:
    """Return a new provider of `pulumi_postgresql`."""
    from observatory.engines.providers.postgresql import PostgresqlProvider  # noqa: PLC0415 - imports psycopg

    return PostgresqlProvider()


IN_TREE: Mapping[str, Callable[[], Provider]] = {"postgresql": postgresql}
