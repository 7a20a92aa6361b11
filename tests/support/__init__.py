"""What several parts of the suite need to run against: real servers, never imitations."""
