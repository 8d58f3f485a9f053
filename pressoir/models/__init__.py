"""Transformers modules: loading, saving, their layouts, empty skeletons, and int8 as PyTorch simulates it.

A model folder enters; a module in evaluation mode, or the names of its parts, leaves.
"""
