"""From a recipe to a plan and its steps: keys, checks before any work, estimates, and the building of one stage.

A recipe and a store enter; rows of a plan, or artifacts, leave.
"""
