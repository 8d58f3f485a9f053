"""The catalogue of models, the locked file that holds it, and when a new version is promoted.

Entries and measurements enter; a valid `models.json` and the decision about an alias leave.
"""
