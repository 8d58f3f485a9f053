"""From a budget to a recipe: the space, the trials, what is known of each, and which one wins."""
