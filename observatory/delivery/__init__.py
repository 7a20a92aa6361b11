"""Deployments and rollbacks of the service. Does not import the database, the engines or Pulumi.

`deployment` deploys, `rollback` rolls back, `traffic_shift` and `rolling` are the strategies, `gates` evaluates a step,
`convergence` applies the rollout document to the balancer, and `releases` and `approvals` store what may be deployed.
"""
