"""Evaluate many models on one machine: estimates, plan, isolated children, journal, report.

A configuration that names models and data sets enters. Scores, times and peaks of each model leave, in one
report that a killed run goes on from.
"""
