"""The OpenAI-compatible server over mlx_lm's engine."""
