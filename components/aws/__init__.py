"""The components of an AWS stack: machines, volumes, buckets and balancers in one account and region.

`stack` declares them.
"""
