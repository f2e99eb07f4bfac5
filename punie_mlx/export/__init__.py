"""Adapter → fused float16 → n bits; models from the Hub."""
