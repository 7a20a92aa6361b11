"""Backups of the database with pgBackRest."""
