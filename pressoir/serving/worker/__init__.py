"""The worker's side: the process that holds one loaded model.

Messages enter on a pipe; answers, tokens and measurements leave.
"""
