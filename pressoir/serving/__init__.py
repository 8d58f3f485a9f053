"""Serve models to several tiers: what tiers name alike is loaded once, and shared."""
