"""The AWS platform: `balancer` sets the ALB's traffic weights, `hosts` installs versions, `documents` are in S3."""
