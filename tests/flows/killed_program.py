"""The program `pressoir`, without the fresh processes in which the benchmark opens each model."""

from pressoir.benchmark import probe
from pressoir.flows.__main__ import main

probe.probe = lambda *call: probe.Probe(import_s=3.0, load_s=0.5, baseline_rss_mb=400.0, peak_rss_mb=500.0)

if __name__ == "__main__":
    main()
