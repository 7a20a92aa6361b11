"""The AWS platform: load balancer, hosts, S3 documents."""
