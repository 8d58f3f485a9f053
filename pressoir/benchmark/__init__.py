"""Models side by side: time in turns, size, memory and quality, with their reports and pictures.

Model folders and data enter; `benchmark.json`, a comparison in Markdown and plots leave.
"""
