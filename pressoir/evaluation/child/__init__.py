"""What runs in the process of one evaluated model.

A job enters on the command line; predictions and messages leave through the journal and standard output.
"""
