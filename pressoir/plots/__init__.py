"""How every picture looks: colours, fonts, axes, and labels that do not overlap.

Axes and points enter; styled figures leave. The pictures themselves stand beside their data.
"""
