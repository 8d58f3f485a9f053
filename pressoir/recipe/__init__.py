"""The recipe: what a run does, as typed sections that are at once the YAML, the form and the reference.

A path, a dict or YAML enters; a frozen, checked `Recipe` leaves.
"""
