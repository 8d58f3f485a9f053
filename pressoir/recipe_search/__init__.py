"""From a budget to a recipe: the space, the trials, what is known of each, and which one wins.

A search configuration and measurements enter; proposals, a winning recipe and the report leave.
"""
