"""MLflow's own server, for tests that stop it, hang it and start it again."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time


class Server:
    """`mlflow server` on one port and one database, which can be stopped and started."""

    def __init__(self, folder):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"
        self._folder, self._process = folder, None

    def start(self):
        import httpx

        words = (
            f"server --host 127.0.0.1 --port {self.port} --workers 1 --backend-store-uri sqlite:///server.db"
        )
        with (self._folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "mlflow", *words.split(), "--artifacts-destination", "files"],
                cwd=self._folder,
                env={k: v for k, v in os.environ.items() if k != "MLFLOW_TRACKING_URI"},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        while True:
            with contextlib.suppress(httpx.HTTPError):
                if httpx.get(f"{self.uri}/health").status_code == 200:
                    return
            assert self._process.poll() is None, (self._folder / "server.log").read_text()
            time.sleep(0.2)

    def stop(self):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def hang(self):
        os.killpg(self._process.pid, signal.SIGSTOP)

    def resume(self):
        os.killpg(self._process.pid, signal.SIGCONT)
