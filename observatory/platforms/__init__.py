"""What deliveries work with on each platform: the implementations of `observatory.delivery.environment`."""
