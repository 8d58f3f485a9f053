"""The machine: memory and its limits, CPUs, the runtime's settings, crash-safe files, and text of others.

Nothing of a model is known here; paths, process ids, numbers and text that others wrote enter; measurements,
finished files and checked values leave.
"""
