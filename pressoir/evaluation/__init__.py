"""Evaluate many models on one machine: estimates, plan, isolated children, journal, report."""
