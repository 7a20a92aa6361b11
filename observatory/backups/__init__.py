"""Backups of the database: one interface over pgBackRest."""
