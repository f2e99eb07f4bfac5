"""Rows → LoRA adapter."""
