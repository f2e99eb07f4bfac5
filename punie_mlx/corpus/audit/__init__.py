"""The audit: what is wrong with a corpus before a model learns it, with file and line of everything that was found."""
