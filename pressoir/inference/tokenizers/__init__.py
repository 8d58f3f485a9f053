"""Text to token ids and back, without importing PyTorch.

A tokenizer's files enter; padded arrays of ids and streamed text leave.
"""
