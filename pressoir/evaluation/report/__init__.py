"""The outcome of an evaluation: scores, tables, pictures and files.

Results of jobs enter; one consolidated report leaves.
"""
