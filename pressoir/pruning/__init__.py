"""Which units and word pieces matter least, and their physical removal.

A model and calibration data enter; importance, the units to keep and a smaller model leave.
"""
