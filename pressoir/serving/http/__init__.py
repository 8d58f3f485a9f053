"""The server: a service's tiers over HTTP, with limits, metrics and the comparison page.

Requests enter, answers and refusals leave. Only what is in here knows FastAPI. See `docs/serving.md` for the
endpoints.
"""
