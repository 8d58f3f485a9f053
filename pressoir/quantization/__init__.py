"""Weights in 8, 4, 3 or 2 bits: packing, algorithms, the packed checkpoint, and the choice of bits a layer."""
