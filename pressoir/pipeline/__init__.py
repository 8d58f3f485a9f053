"""From a recipe to a plan and its steps: keys, checks before any work, estimates, and one stage's building.

A recipe and a store enter; rows of a plan, or artifacts, leave. A model alone can enter, too: what it is, and
which stages take it, leaves.
"""
