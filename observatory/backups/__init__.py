"""Runs pgBackRest: creates, lists and verifies backups. `observatory.nodes.pgbackrest` renders its configuration."""
