"""The JavaScript engines of latency.py: Node and headless Chromium."""

import json
import shutil
import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from hf_tinybert.publishing.demo import write_demo

HERE = Path(__file__).parent


class Isolated(SimpleHTTPRequestHandler):
    """Serves pages that may use several threads."""

    def end_headers(self):
        self.send_header("Cross-Origin-Opener-Policy", "same-origin")
        self.send_header("Cross-Origin-Embedder-Policy", "require-corp")
        super().end_headers()

    def log_message(self, *arguments):
        pass


def in_node(folder: Path, dtype: str, threads: int, cases: Sequence[dict], calls: int) -> list[dict]:
    """The milliseconds of each case in onnxruntime-node."""
    return _run(folder=str(folder), dtype=dtype, threads=threads, cases=cases, calls=calls)


def in_browser(
    folder: Path, dtype: str, threads: int, cases: Sequence[dict], calls: int, packages: Path
) -> list[dict]:
    """The milliseconds of each case in WebAssembly, in headless Chromium."""
    with _served(folder, packages) as url:
        chromium = shutil.which("chromium")
        return _run(
            folder="student", dtype=dtype, threads=threads, cases=cases, calls=calls, url=url, chromium=chromium
        )


@contextmanager
def _served(folder: Path, packages: Path) -> Iterator[str]:
    page = folder / "page"
    write_demo(page, folder, "latency", transformers_js=packages)
    shutil.copytree(folder / "onnx", page / "student/onnx", dirs_exist_ok=True)  # the page takes one graph alone
    shutil.copy(HERE / "latency_measure.js", page)
    shutil.copy(HERE / "latency_page.js", page / "script.js")
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Isolated, directory=page)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


def _run(**settings) -> list[dict]:
    command = ["node", str(HERE / "latency_node.cjs"), json.dumps(settings)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"Node failed: {done.stderr[-2000:]}")
    return json.loads(done.stdout)
