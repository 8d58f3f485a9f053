"""Where models come from: a folder, a hub, a package, the store, or shards over HTTP.

A reference enters; a local folder that was checked to be whole and safe leaves.
"""
