"""Serves the page's folder on this machine alone, with the headers of WASM threads.

python3 serve.py [FOLDER] [--port PORT]: by default its own folder, on port 8000. Standard library
only: pages get a copy.
"""
import argparse
import sys
from collections.abc import Callable
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

HOSTS = ("localhost", "127.0.0.1", "[::1]")  # of a request; else a page elsewhere could read ours
HEADERS = {"Cross-Origin-Opener-Policy": "same-origin",
           "Cross-Origin-Embedder-Policy": "require-corp",
           "Cross-Origin-Resource-Policy": "same-origin",
           "X-Content-Type-Options": "nosniff",
           "Referrer-Policy": "no-referrer",
           "Cache-Control": "no-cache"}
# styles: the colours of the legend; blob: videos and photos that the user chose
POLICY = ("default-src 'none'; script-src 'self' 'wasm-unsafe-eval'{}; worker-src 'self'; "
          "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; media-src 'self' blob:; "
          "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'")
WORKERS = ("/worker.js", "/ort/")  # onnxruntime-web's WebGPU code is compiled from text
TYPES = {".mjs": "text/javascript", ".js": "text/javascript", ".webp": "image/webp",
         ".gz": "application/octet-stream"}


class IsolatedHandler(SimpleHTTPRequestHandler):
    """Regular files of one folder, without hidden ones, lists of folders, and links out of it."""

    def send_head(self):
        given = [host.lower() for host in self.headers.get_all("Host") or []]
        if len(given) != 1 or not {given[0], given[0].rpartition(":")[0]} & {*HOSTS}:
            return self.send_error(421, "This server answers for localhost only")
        if not self._is_served():
            return self.send_error(404)
        return super().send_head()

    def list_directory(self, path):
        return self.send_error(404)

    def guess_type(self, path) -> str:
        return TYPES.get(Path(path).suffix) or super().guess_type(path)

    def end_headers(self) -> None:
        for name, value in HEADERS.items():
            self.send_header(name, value)
        evaluates = getattr(self, "path", "").startswith(WORKERS)
        self.send_header("Content-Security-Policy",
                         POLICY.format(" 'unsafe-eval'" if evaluates else ""))
        super().end_headers()

    def log_message(self, *_: object) -> None:
        """No line per request."""

    def _is_served(self) -> bool:
        try:
            root, path = Path(self.directory).resolve(), Path(self.translate_path(self.path))
            if path.is_dir():
                path /= "index.html"
            hidden = any(part.startswith(".") for part in path.relative_to(self.directory).parts)
            return not hidden and path.is_file() and path.resolve().is_relative_to(root)
        except (ValueError, OSError, RuntimeError):  # a null byte, a name too long, a loop of links
            return False


class LocalServer(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request, client_address) -> None:
        if not isinstance(sys.exc_info()[1], OSError):  # the browser went away
            super().handle_error(request, client_address)


def server(folder: Path, port: int = 0) -> LocalServer:
    """A server not yet running, on 127.0.0.1; port 0 takes a free one."""
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder; write a page with: vega3d export web")
    try:
        return LocalServer(("127.0.0.1", port), partial(IsolatedHandler, directory=str(folder)))
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"serve: port {port} cannot be used ({reason}); choose another with "
                         "--port") from error


def serve_folder(folder: Path, port: int = 8000, log: Callable[[str], None] = print) -> None:
    """Serves until interrupted. Raises ValueError as `server` does."""
    with server(folder, port) as serving:
        log(f"http://localhost:{serving.server_port}/  (Ctrl-C ends)")
        try:
            serving.serve_forever()
        except KeyboardInterrupt:
            log("ended")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?", default=Path(__file__).parent)
    parser.add_argument("--port", type=int, default=8000)
    options = parser.parse_args()
    try:
        serve_folder(options.folder, options.port)
    except ValueError as error:
        print(f"serve: {str(error).removeprefix('serve: ')}", file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
