"""Weights in 8, 4, 3 or 2 bits: grids, algorithms, calibration, bits chosen a layer, and int8 for encoders.

A checkpoint and calibration text enter; a folder of packed codes and scales, with each layer's error, leaves.
"""
