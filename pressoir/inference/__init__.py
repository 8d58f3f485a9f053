"""Run models: engines take and give arrays; one adapter a task pre- and post-processes over any engine."""
