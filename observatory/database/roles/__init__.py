"""Roles of the database: bootstrap, limits, privileges and API keys."""

BOOTSTRAP_REVISION = 3  # of `ensure_database`; a server that an earlier revision prepared gets it again
