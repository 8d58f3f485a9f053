"""Pressoir: press Transformer models into small, fast ones, and prove what each step cost.

The package is light to import: nothing heavy (torch, onnxruntime, transformers) loads until a stage needs it.
"""

__version__ = "0.1.0"
