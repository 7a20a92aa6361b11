"""The local platform: `balancer` sets HAProxy's traffic weights; `hosts`, `instances`, `trial` and `status`."""
