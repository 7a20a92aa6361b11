"""The reference storage service that the fleets run, and how its artifact is built."""
