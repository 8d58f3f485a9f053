"""Artifacts and the content-addressed store that keeps them.

A stage's key and a function that fills a folder enter; a published, verified folder and its artifact leave.
"""
