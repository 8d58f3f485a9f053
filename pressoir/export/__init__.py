"""A model as an ONNX graph that is fused for the CPU, and the proof that it computes the same.

A model or quantised checkpoint enters; a graph, its report and the parity leave.
"""
