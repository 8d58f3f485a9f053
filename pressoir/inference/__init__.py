"""Run models: engines take arrays and give arrays; one adapter a task pre- and post-processes over any engine."""
