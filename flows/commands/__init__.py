"""The command line, one file a command: options are read and checked here, a flow or a stage does the work.

Arguments and configuration files enter; text for a terminal and an exit status leave.
"""
