"""What computes: PyTorch modules and ONNX Runtime sessions behind one protocol a kind of model.

Arrays of token ids enter; logits, states and caches leave.
"""
