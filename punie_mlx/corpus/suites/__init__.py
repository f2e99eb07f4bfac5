"""Suites: what a case expects and whether a call is that, checks of a suite, where cases come from."""
