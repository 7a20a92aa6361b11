"""The local platform: balancer, fleets, instances, trial and status."""
