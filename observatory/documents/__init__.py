"""State that lives beside the stack: the rollout, logins and the journal; changed by compare-and-set."""
