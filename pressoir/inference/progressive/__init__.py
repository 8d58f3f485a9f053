"""Models that answer before the last shard has arrived.

A source of shards enters; a session whose later weights are filled in as they come leaves.
"""
