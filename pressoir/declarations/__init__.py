"""What Pressoir itself declares, one file a task. Entry points name it; lower rooms reach it by their loader.

Nothing enters; a declaration leaves. Its heavy parts are dotted paths: reading it imports no PyTorch.
"""
