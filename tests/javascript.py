"""transformers.js in Node, for tests. Without it they skip, and fail with the environment variable CI=true."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

PACKAGE = "@huggingface/transformers"
PIPELINE = Path(__file__).with_name("run_pipeline.cjs")


def missing(what: str) -> None:
    """Skip the test, or fail it in CI, whose script installs everything."""
    message = f"{what} is not installed here: see .ci/run"
    if os.environ.get("CI") == "true":
        pytest.fail(message)
    pytest.skip(message)


def run_node(script: str | Path, *arguments: str) -> str:
    """What a script prints; `require` finds packages in the folder NODE_PATH."""
    done = subprocess.run(["node", script, *arguments], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="session")
def transformers_js() -> Path:
    """The folder of the package."""
    if not shutil.which("node"):
        missing("Node")
    found = subprocess.run(["node", "-p", f"require.resolve('{PACKAGE}')"], capture_output=True, text=True)
    if found.returncode:
        missing(f"The package {PACKAGE} in NODE_PATH")
    return next(path for path in Path(found.stdout.strip()).parents if path.name == "transformers")


def pipeline(task: str, folder: Path, inputs: list, **options):
    """What the pipeline of transformers.js answers; each input is the list of its arguments."""
    settings = {"task": task, "folder": str(folder), "inputs": inputs, "options": options}
    return json.loads(run_node(PIPELINE, json.dumps(settings)))
