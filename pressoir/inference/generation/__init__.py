"""How the next token is chosen: sampling and beam search.

Logits enter; tokens and their scores leave.
"""
