"""The machine: memory and its limits, CPUs, the runtime's settings, and files that survive a crash.

Nothing of a model is known here; paths, process ids and numbers enter, measurements and finished files leave.
"""
