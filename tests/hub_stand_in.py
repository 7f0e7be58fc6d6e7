"""A local stand-in of the Hugging Face Hub: what huggingface_hub asks when it up- and downloads."""

import base64
import hashlib
import http.server
import json
import re
import threading

TOKEN = "hf_stand_in"


class Hub(http.server.ThreadingHTTPServer):
    """Holds the commits of repositories; `with Hub() as hub: hub.address`."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.commits: dict[str, list[tuple[str, dict[str, bytes]]]] = {}  # name: (id, files)
        self.private: dict[str, bool] = {}
        self.requests: list[str] = []
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def find(self, name: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        """Returns id and files of a commit."""
        commits = self.commits.get(name, [])
        if revision == "main":
            return commits[-1] if commits else None
        return next((commit for commit in commits if commit[0].startswith(revision)), None)


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *_):
        pass

    def _answer(self, status: int, content: bytes | dict | list = b"", **headers):
        if not isinstance(content, bytes):
            content, headers["Content-Type"] = json.dumps(content).encode(), "application/json"
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _refuse(self, status: int, code: str):
        self._answer(status, {"error": code}, X_Error_Code=code, X_Error_Message=code)

    def _is_known(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def do_GET(self):
        self.server.requests.append(f"{self.command} {self.path}")
        if self.path == "/api/whoami-v2":
            if not self._is_known():
                return self._refuse(401, "Unauthorized")
            return self._answer(200, {"name": "someone", "type": "user", "orgs": []})
        info = re.fullmatch(r"/api/models/(\w+/\w+)(?:/revision/(\w+))?(?:\?.*)?", self.path)
        tree = re.fullmatch(r"/api/models/(\w+/\w+)/tree/(\w+)(?:\?.*)?", self.path)
        file = re.fullmatch(r"/(\w+/\w+)/resolve/(\w+)/([\w.]+)", self.path)
        asked = info or tree or file
        if not asked:
            return self._refuse(404, "EntryNotFound")
        name = asked[1]
        if name not in self.server.commits or self.server.private[name] and not self._is_known():
            return self._refuse(401, "RepoNotFound")
        commit = self.server.find(name, asked[2] or "main")
        if commit is None:
            return self._refuse(404, "RevisionNotFound")
        commit_id, files = commit
        if info:
            siblings = [{"rfilename": path} for path in files]
            return self._answer(200, {"id": name, "sha": commit_id, "siblings": siblings})
        if tree:
            entries = [
                {"type": "file", "path": path, "size": len(data), "oid": _oid(data)}
                for path, data in files.items()
            ]
            return self._answer(200, entries)
        if asked[3] not in files:
            return self._refuse(404, "EntryNotFound")
        data = files[asked[3]]
        return self._answer(200, data, ETag=f'"{_oid(data)}"', X_Repo_Commit=commit_id)

    do_HEAD = do_GET

    def do_POST(self):
        self.server.requests.append(f"POST {self.path}")
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if not self._is_known():
            return self._refuse(401, "Unauthorized")
        if self.path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked.get('organization') or 'someone'}/{asked['name']}"
            if name in self.server.commits:
                return self._answer(409, {"url": f"{self.server.address}/{name}"})
            self.server.commits[name], self.server.private[name] = [], asked.get("private", False)
            return self._answer(200, {"url": f"{self.server.address}/{name}"})
        if self.path == "/api/validate-yaml":
            return self._answer(200, {"errors": [], "warnings": []})
        name = re.match(r"/api/models/(\w+/\w+)/", self.path)[1]
        if "/preupload/" in self.path:
            files = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                for file in json.loads(body)["files"]
            ]
            return self._answer(200, {"files": files})
        if "/commit/" in self.path:
            commits = self.server.commits[name]
            files = dict(commits[-1][1]) if commits else {}
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    assert line["value"]["encoding"] == "base64"
                    files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            commit_id = hashlib.sha1(body).hexdigest()
            commits.append((commit_id, files))
            where = f"{self.server.address}/{name}/commit/{commit_id}"
            return self._answer(200, {"commitUrl": where, "commitOid": commit_id, "success": True})
        return self._refuse(404, "EntryNotFound")


def _oid(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
