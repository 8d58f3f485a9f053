"""The stages: one file each, one pure operation each; each composes the rooms below by the task of its model.

A file declares its stage as `STAGE`, see `pressoir.stage.Stage`, and the entry points of `pressoir.stages`
name it. Whatever loads torch is imported inside `run`, so that all declarations can be read in an instant.
Folders and a configuration enter; a folder and metrics leave.
"""
