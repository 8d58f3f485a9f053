"""Merging: checks before the work, what mergekit is given, and the comparison with the parents.

Folders of parents and a merge's settings enter; a merged checkpoint, its exact configuration and its distance
from each parent leave.
"""
