"""Messages ↔ prompt tokens."""
