"""How much memory a model will need, before it is loaded.

A folder's configuration and weights enter; bytes, from a formula or a probe, leave.
"""
