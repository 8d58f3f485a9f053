"""How every picture looks: colours, fonts, axes, and labels that do not overlap; and pages that are one file.

Axes and points enter; styled figures, or plots within a page, leave. The pictures themselves stand beside
their data.
"""
