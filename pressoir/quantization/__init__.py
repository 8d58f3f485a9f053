"""Weights in 8, 4, 3 or 2 bits: packing, algorithms, the packed checkpoint, and bits chosen a layer."""
