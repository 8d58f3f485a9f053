"""What lies in a model folder, read and written without loading a model.

Folders, tensors and codes enter; names, checked bytes, packed weights, shards and manifests leave.
"""
