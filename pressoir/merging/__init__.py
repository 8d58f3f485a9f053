"""Merging: checks before the work, what mergekit is given, and the comparison with the parents."""
