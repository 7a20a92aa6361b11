"""Roles of the database: bootstrap, limits, privileges and API keys."""
