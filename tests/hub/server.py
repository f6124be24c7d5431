"""A small Hub for the tests: what huggingface_hub asks for, with real storage, faults to order, and a log.

In a test:

    with HubServer(tmp_path / "hub") as hub:
        run_client(hub, "from huggingface_hub import HfApi; HfApi().create_repo('user/x', repo_type='dataset')")

As a process of its own, from the root of the project (the port file is JSON, written when both ports listen):

    python -m tests.hub.server --root DIR --port-file FILE
"""

from __future__ import annotations

import argparse
import hashlib
import hmac
import json
import re
import secrets
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from urllib.parse import urlencode

from tests.hub import api, trees, uploads
from tests.hub.faults import Faults
from tests.hub.storage import HubError, Store, write_whole
from tests.hub.wire import Origin, Record, Request, Route, Work


@dataclass(frozen=True)
class Account:
    name: str
    role: str = "write"  # of the token: "write" or "read"
    orgs: tuple[str, ...] = ()


WRITE_TOKEN = "hf_writeTokenOfUser"
READ_TOKEN = "hf_readTokenOfUser"
OTHER_TOKEN = "hf_writeTokenOfStranger"
ACCOUNTS = {
    WRITE_TOKEN: Account("user", orgs=("org",)),
    READ_TOKEN: Account("user", "read", ("org",)),
    OTHER_TOKEN: Account("stranger"),
}

_TYPE, _REPO, _REV = "(?P<type>models|datasets|spaces)", "(?P<repo>[^/]+/[^/]+)", "(?P<revision>[^/]+)"
_API = f"/api/{_TYPE}/{_REPO}"
_GIT = "/(?:(?P<type>datasets|spaces)/)?(?P<repo>[^/]+/[^/]+)"


def _route(name: str, method: str, pattern: str, work: Work) -> Route:
    return Route(name, method, re.compile(pattern), work)


HUB_ROUTES = [
    _route("whoami", "GET", "/api/whoami-v2", api.whoami),
    _route("create_repo", "POST", "/api/repos/create", api.create_repo),
    _route("delete_repo", "DELETE", "/api/repos/delete", api.delete_repo),
    _route("validate_yaml", "POST", "/api/validate-yaml", api.validate_yaml),
    _route("agent_harnesses", "GET", "/api/agent-harnesses", api.agent_harnesses),
    _route("complete", "POST", "/api/complete-multipart/(?P<upload>[0-9a-f]+)", uploads.complete_multipart),
    _route("info", "GET", f"{_API}(?:/revision/{_REV})?", api.repo_info),
    _route("auth_check", "GET", f"{_API}/auth-check", api.auth_check),
    _route("tree", "GET", f"{_API}/tree/{_REV}(?P<path>/.*)?", trees.list_tree),
    _route("paths_info", "POST", f"{_API}/paths-info/{_REV}", trees.paths_info),
    _route("refs", "GET", f"{_API}/refs", api.list_refs),
    _route("discussions", "GET", f"{_API}/discussions", api.list_discussions),
    _route("commits", "GET", f"{_API}/commits/{_REV}", api.list_commits),
    _route("create_branch", "POST", f"{_API}/branch/(?P<branch>[^/]+)", api.create_ref),
    _route("delete_branch", "DELETE", f"{_API}/branch/(?P<branch>[^/]+)", api.delete_ref),
    _route("create_tag", "POST", f"{_API}/tag/{_REV}", api.create_ref),
    _route("delete_tag", "DELETE", f"{_API}/tag/{_REV}", api.delete_ref),
    _route("preupload", "POST", f"{_API}/preupload/{_REV}", uploads.preupload),
    _route("commit", "POST", f"{_API}/commit/{_REV}", uploads.commit),
    _route("xet_token", "GET", f"{_API}/xet-(?P<kind>read|write)-token/{_REV}", uploads.xet_token),
    _route("lfs_batch", "POST", f"{_GIT}\\.git/info/lfs/objects/batch", uploads.lfs_batch),
    _route("verify", "POST", f"{_GIT}\\.git/info/lfs/objects/verify", uploads.verify),
    _route("resolve", "GET", f"{_GIT}/resolve/{_REV}/(?P<path>.+)", trees.resolve),
]
CDN_ROUTES = [
    _route("cdn_get", "GET", "/lfs/(?P<sha256>[0-9a-f]{64})", trees.cdn_get),
    _route("put", "PUT", "/lfs/(?P<sha256>[0-9a-f]{64})", uploads.cdn_put),
    _route("put_part", "PUT", "/parts/(?P<upload>[0-9a-f]+)/(?P<number>[0-9]+)", uploads.cdn_put_part),
]
ROUTE_NAMES = {route.name for route in [*HUB_ROUTES, *CDN_ROUTES]}


class HubServer:
    """The Hub on one port of 127.0.0.1 and its CDN on another, over a folder that outlives it.

    - `faults`: orders for failures, see `Faults.add`;
    - `log`: every request in order of arrival; `violations`: what no client may do (the token sent to the CDN, a
      chunked upload); `crashes`: defects of this server. The last two must be empty at the end of a test;
    - `on_request` is called when a request has arrived, `on_response` when its work is done and before the answer is
      sent, both in the thread that serves it (several at a time). A ConnectionError raised there closes the connection
      without an answer; neither may stop the server;
    - `part_size`: bytes from which on uploads go in parts; None is never; `page_size`, `expanded_page_size`: rows of a
      page of a listing. They may be changed at any time.
    """

    def __init__(
        self, root: Path, *, port: int = 0, cdn_port: int = 0, part_size: int | None = None, page_size: int = 1000
    ) -> None:
        self.store = Store(root)
        self.accounts = dict(ACCOUNTS)
        self.faults = Faults(ROUTE_NAMES)
        self.log: list[Record] = []
        self.violations: list[str] = []
        self.crashes: list[str] = []
        self.on_request: Callable[[Record], None] | None = None
        self.on_response: Callable[[Record], None] | None = None
        self.part_size, self.page_size, self.expanded_page_size = part_size, page_size, 50
        self.stopping = threading.Event()
        self._lock = threading.Lock()
        self._key = self._signing_key()
        self._hub = Origin(self, "hub", port, HUB_ROUTES)
        self._cdn = Origin(self, "cdn", cdn_port, CDN_ROUTES)
        self.port, self.cdn_port = self._hub.server_port, self._cdn.server_port
        self.endpoint, self.cdn = f"http://127.0.0.1:{self.port}", f"http://127.0.0.1:{self.cdn_port}"

    def __enter__(self) -> HubServer:
        self._hub.start()
        self._cdn.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.stopping.set()
        self._hub.stop()
        self._cdn.stop()

    def requests(self, *routes: str) -> list[Record]:
        """The log, of these routes only if any are named."""
        with self._lock:
            return [record for record in self.log if not routes or record.route in routes]

    def open_record(self, origin: str, method: str, route: str, path: str, authenticated: bool) -> Record:
        with self._lock:
            self.log.append(Record(len(self.log) + 1, origin, method, route, path, authenticated))
            return self.log[-1]

    def account_of(self, authorization: str | None) -> Account | None:
        if authorization is None:
            return None
        account = self.accounts.get(authorization.removeprefix("Bearer "))
        if account is None:
            raise HubError(401, "", "Invalid credentials in Authorization header")
        return account

    # Addresses of the object store carry their permission; clients send no token there.

    def _signing_key(self) -> bytes:
        path = self.store.root / "key"
        if not path.is_file():
            write_whole(path, secrets.token_bytes(32))
        return path.read_bytes()

    def _signature(self, path: str) -> str:
        return hmac.new(self._key, path.encode(), hashlib.sha256).hexdigest()

    def signed(self, path: str, *, origin: str | None = None, **query: str) -> str:
        return f"{origin or self.cdn}{path}?{urlencode({**query, 'signature': self._signature(path)})}"

    def check_signature(self, request: Request) -> None:
        if not hmac.compare_digest(request.query.get("signature", ""), self._signature(request.url_path)):
            raise HubError(403, "", "The signature does not match")


def main() -> None:
    parser = argparse.ArgumentParser(description="A small Hugging Face Hub on 127.0.0.1, for tests.")
    parser.add_argument("--root", type=Path, required=True, help="folder of its storage; made if missing")
    parser.add_argument("--port-file", type=Path, required=True, help="where to write endpoint and cdn as JSON")
    parser.add_argument("--port", type=int, default=0, help="0: any free one")
    parser.add_argument("--cdn-port", type=int, default=0, help="0: any free one")
    parser.add_argument("--part-size", type=int, help="bytes from which on uploads go in parts")
    args = parser.parse_args()
    stop = threading.Event()
    for name in (signal.SIGTERM, signal.SIGINT):
        signal.signal(name, lambda *_: stop.set())
    with HubServer(args.root, port=args.port, cdn_port=args.cdn_port, part_size=args.part_size) as hub:
        write_whole(args.port_file, json.dumps({"endpoint": hub.endpoint, "cdn": hub.cdn}).encode())
        stop.wait()


if __name__ == "__main__":
    main()
