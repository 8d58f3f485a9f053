"""Run models: engines take and give arrays; one adapter a task pre- and post-processes over any engine.

A model folder and texts or sound enter; labels, text, vectors or probabilities leave.
"""
