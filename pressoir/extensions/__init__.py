"""What other packages can add to: tasks, stages, quantisation algorithms and encoder architectures.

Here are the types of what is added, and one loader of the lists. A name enters; what was declared under it
leaves. Declarations stand in rooms above, or in other packages, and are found through entry points.
"""
