"""Serve models to several tiers; a model that several of them name is loaded once, and shared.

A serving configuration and requests enter; answers, their statistics, and a checked deployment leave.
"""
