"""Training rows: read, convert, generate, audit, split."""
