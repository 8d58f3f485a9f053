"""The part of the hub's API that an upload needs, on this machine: `huggingface_hub` itself talks to it."""

import base64
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

TOKEN = "hf_the-right-one"
LARGE = (".safetensors", ".onnx")


class Hub:
    """What arrived: repositories, their branches and files; large files by their SHA-256."""

    def __init__(self):
        self.repositories, self.branches, self.files, self.large = {}, set(), {}, {}
        self.status, self.card_errors = None, []
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def close(self):
        self.server.shutdown()
        self.server.server_close()

    def answer(self, method, path, body):
        """Status and JSON."""
        if path.startswith("/lfs/"):
            assert method == "PUT"
            self.large[hashlib.sha256(body).hexdigest()] = body
            return 200, {}
        if path == "/api/repos/create":
            wanted = json.loads(body)
            name = f"{wanted['organization'] or 'me'}/{wanted['name']}"
            known = name in self.repositories
            self.repositories.setdefault(name, wanted)
            return (409 if known else 200), {"url": f"{self.url}/{name}"}
        if path == "/api/validate-yaml":
            return (400 if self.card_errors else 200), {"errors": self.card_errors, "warnings": []}
        if path.endswith(".git/info/lfs/objects/batch"):
            objects = json.loads(body)["objects"]
            for wanted in objects:
                wanted["actions"] = {"upload": {"href": f"{self.url}/lfs/{wanted['oid']}"}}
            return 200, {"transfer": "basic", "objects": objects}
        repository, action, revision = re.fullmatch(r"/api/models/(\w+/[\w.-]+)/(\w+)/(.+)", path).groups()
        assert repository in self.repositories
        return getattr(self, action)(unquote(revision), body)

    def branch(self, revision, body):
        known = revision in self.branches
        self.branches.add(revision)
        return (409 if known else 200), {}

    def preupload(self, revision, body):
        files = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith(LARGE) else "regular",
                "shouldIgnore": False,
            }
            for file in json.loads(body)["files"]
        ]
        return 200, {"files": files}

    def commit(self, revision, body):
        for entry in map(json.loads, body.splitlines()):
            value = entry["value"]
            if entry["key"] == "file":
                self.files[revision, value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                self.files[revision, value["path"]] = self.large[value["oid"]]
            else:
                assert entry["key"] == "header"
        return 200, {"commitUrl": f"{self.url}/me/tiny/commit/abc", "commitOid": "abc"}

    def _handler(hub):  # noqa: N805
        class Handler(BaseHTTPRequestHandler):
            def respond(self):
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                authorised = self.headers.get("Authorization") == f"Bearer {TOKEN}"
                if hub.status:
                    status, content = hub.status, {"error": "the hub's own words"}
                elif not authorised and not self.path.startswith("/lfs/"):
                    status, content = 401, {"error": "Invalid credentials"}
                else:
                    status, content = hub.answer(self.command, self.path.partition("?")[0], body)
                text = json.dumps(content).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            do_GET = do_POST = do_PUT = respond  # noqa: N815

            def log_message(self, *arguments):
                pass

        return Handler
