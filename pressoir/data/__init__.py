"""Texts and labels: sentences with their splits, running text, and tables.

Files, hub data sets or the embedded corpus enter; checked splits and their digest leave.
"""
