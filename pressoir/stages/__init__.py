"""The stages: one file each, one pure operation each; each composes the rooms below by the task of its model.

A stage module has `NAME`, `VERSION` (raised whenever its result would change), `KIND` (of what it makes) and
`run(inputs, config, context) -> metrics`. `inputs` are folders by name; everything the stage makes goes into
`context.out_dir`, which the store publishes only when `run` returns.
"""
