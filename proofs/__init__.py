"""`make prove`: promises proved by counted runs on real parts, too long for `make test`; see docs/proofs.json."""
