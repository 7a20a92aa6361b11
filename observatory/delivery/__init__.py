"""Deployments and rollbacks of the service. Does not import the database, the engines or Pulumi."""
