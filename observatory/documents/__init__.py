"""State that is kept beside the stack: the rollout document, the access document and the journal."""
