"""Serves a folder with the headers of WASM threads. Standard library only: pages get a copy."""
import sys
from collections.abc import Callable
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

ISOLATION = {"Cross-Origin-Opener-Policy": "same-origin",
             "Cross-Origin-Embedder-Policy": "require-corp",
             "Cross-Origin-Resource-Policy": "same-origin"}
TYPES = {".mjs": "text/javascript", ".js": "text/javascript", ".webp": "image/webp",
         ".gz": "application/octet-stream"}


class IsolatedHandler(SimpleHTTPRequestHandler):
    def guess_type(self, path) -> str:
        return TYPES.get(Path(path).suffix) or super().guess_type(path)

    def end_headers(self) -> None:
        for name, value in ISOLATION.items():
            self.send_header(name, value)
        self.send_header("Cache-Control", "no-cache")
        super().end_headers()

    def log_message(self, *_: object) -> None:
        """No line per request."""


def server(folder: Path, port: int = 0) -> ThreadingHTTPServer:
    """A server not yet running; port 0 takes a free one. Raises OSError if the port is taken."""
    handler = partial(IsolatedHandler, directory=str(folder))
    return ThreadingHTTPServer(("127.0.0.1", port), handler)


def serve_folder(folder: Path, port: int = 8000, log: Callable[[str], None] = print) -> None:
    """Serves until interrupted. Raises ValueError if the port is taken."""
    try:
        serving = server(folder, port)
    except OSError as error:
        raise ValueError(f"serve: port {port} cannot be used ({error.strerror}); choose another "
                         "with --port") from error
    log(f"http://localhost:{serving.server_port}/  (Ctrl-C ends)")
    with serving:
        try:
            serving.serve_forever()
        except KeyboardInterrupt:
            log("ended")


if __name__ == "__main__":
    serve_folder(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
