"""The service contract as a check: an artifact is run on a bench of real daemons, requirement by requirement.

`docs/service-contract.md` states the contract; each requirement names its section there.
"""
