"""Training loops of teachers and students, the losses, and what is learnt from.

A model, tokenised sentences and a teacher's outputs enter; a trained model and its history leave.
"""
