"""A server without models that speaks as Pressoir's does: `fake_tier_server.py CONFIG --host … --port 0`.

In a test it also stands for the server that runs already; `faults` are what goes wrong there.
"""

import json
import os
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import yaml


class FakeServer(ThreadingHTTPServer):
    """Serves what a configuration (a mapping) says, and takes another at `/reload`."""

    daemon_threads = True

    def __init__(self, config, key="", mute=()):
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.config, self.key, self.mute = config, key, mute
        self.tells_config, self.faults, self.reloads = True, [], 0

    @property
    def digests(self):
        return {name: tier["digest"] for name, tier in self.config["tiers"].items()}

    def __enter__(self):
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self.shutdown()
        self.server_close()

    def handle_error(self, request, client_address):
        """A lost answer is what some tests are about."""


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/v2/health/ready":
            self.send(200, {"ready": True})
        elif self.refused():
            pass
        elif self.path == "/tiers":
            tiers = [{"tier": name, "digest": digest} for name, digest in self.server.digests.items()]
            self.send(200, {"tiers": tiers, "default_pair": None})
        elif self.path == "/config" and self.server.tells_config:
            self.send(200, self.server.config)
        else:
            self.send(404, error("not_found", f"no {self.path}"))

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.refused():
            return
        if self.path == "/reload":
            self.server.reloads += 1
            fault = self.server.faults.pop(0) if self.server.faults else None
            if fault == "refused":
                self.send(503, error("load_failed", "the model cannot be loaded"))
                return
            if fault != "ignored":
                self.server.config = body["config"]
            self.server.mute = ["story"] if fault == "unfit" else []
            if fault == "lost":
                self.connection.close()
                return
            self.send(200, {"reloaded": True})
            return
        if self.path.endswith("/load"):
            self.send(200, {"loaded": True})
            return
        tier = self.path.split("/")[3]
        if tier in self.server.mute:
            self.send(500, error("inference_failed", f"{tier} failed"))
            return
        count = len(body["inputs"][0]["data"])
        output = {"name": "label", "datatype": "BYTES", "shape": [count], "data": ["positive"] * count}
        self.send(200, {"model_name": tier, "outputs": [output]})

    def refused(self):
        if self.server.key and self.headers.get("Authorization") != f"Bearer {self.server.key}":
            self.send(401, error("unauthorized", "wrong key"))
            return True
        return False

    def send(self, status, body):
        content = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        pass


def error(kind, message):
    return {"error": {"type": kind, "message": message, "request_id": "1"}}


if __name__ == "__main__":
    mute = os.environ.get("MUTE_TIERS", "").split()
    if mute == ["all"]:
        sys.exit("no memory for the models")
    config = yaml.safe_load(Path(sys.argv[1]).read_text(encoding="utf-8"))
    server = FakeServer(config, os.environ.get("PRESSOIR_ADMIN_KEY", ""), mute)
    print(f"{server.url}  Ctrl-C stops the server", file=sys.stderr, flush=True)
    server.serve_forever()
