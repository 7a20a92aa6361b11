"""The platform `aws`: the stack as machines, volumes, buckets and balancers of one account and region."""
