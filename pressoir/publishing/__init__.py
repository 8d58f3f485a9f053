"""What leaves this machine: the model card of a compressed model, the page of its run, its upload to the hub.

A recipe, its benchmark and a model folder enter; `README.md` in the hub's form, `report.html`, or a commit on
the Hugging Face hub, leaves.
"""
