"""From scores to decisions, and from decisions to the final weights."""
