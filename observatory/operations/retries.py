"""How often a migration is retried. A module of its own, so that the help shows the default without psycopg."""

DEFAULT_RETRY = 5  # retries of a migration while other sessions hold its locks
