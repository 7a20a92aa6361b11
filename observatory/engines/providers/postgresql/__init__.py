"""The roles and privileges of `pulumi_postgresql`, over psycopg: Role, Grant and DefaultPrivileges.

Inputs, outputs, defaults, IDs and the properties that force a replacement are those of the plugin (pulumi-postgresql
3.18, which bridges terraform-provider-postgresql 1.26). Three differences are intended:

- Creating a role that exists adopts it, so that an `up` that was killed can run again.
- A plain-text password leaves this process as a SCRAM verifier only.
- A login that is not a superuser must already be a member of the owners whose objects it grants; the plugin makes it a
  member for the duration of the statement.

The plugin's other types and inputs are refused by name. `components.access` decides which roles exist.
"""

from observatory.engines.providers.postgresql.provider import PostgresqlProvider as PostgresqlProvider
from observatory.engines.providers.postgresql.resource_type import DEFAULTS_KEY as DEFAULTS_KEY
