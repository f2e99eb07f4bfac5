"""Suites, the PydanticAI agent under test, the runner, statistics, reports."""
