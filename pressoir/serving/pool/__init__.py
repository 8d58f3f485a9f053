"""The server's side of the workers: which model is loaded, for whom, and which request is next.

Requests for a model enter; answers of its one shared instance leave.
"""
