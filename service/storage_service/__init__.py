"""The reference storage service: takes in and serves LLM traces over HTTP, and stores them in TimescaleDB.

Owns the HTTP contract of a storage service. Does not own the schema (`migrations/`) nor how it is deployed and
balanced. Imports are relative, so that the package runs both from a checkout and at the top of an artifact's path.
"""
