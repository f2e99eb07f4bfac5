"""All checks of a running server, in the order in which they are made: the unusual requests come last."""

from __future__ import annotations

from punie_mlx.doctor import server_calls, server_choice, server_every, server_limits

CHECKS = server_calls.CHECKS + server_choice.CHECKS + server_every.CHECKS + server_limits.CHECKS
