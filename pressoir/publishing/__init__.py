"""What leaves this machine: the model card of a compressed model, and its upload to the Hugging Face hub.

A recipe, its benchmark and a model folder enter; `README.md` in the hub's form, or a commit on the hub,
leaves.
"""
