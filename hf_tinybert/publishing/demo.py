"""A page that runs a student in a browser: one folder, served by any web server, that asks for nothing else."""

import json
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from ..evaluation.measurement import distinct_metrics
from ..evaluation.report import StudentReport
from ..formats.layout import ONNX, ONNX_INT8, size_of

PAGE = Path(__file__).parent / "demo_page"
TRANSFORMERS, ONNX_RUNTIME = "@huggingface/transformers", "onnxruntime-web"
SCRIPTS = {
    TRANSFORMERS: ["dist/transformers.web.min.js", "LICENSE"],
    ONNX_RUNTIME: ["dist/ort.wasm.min.mjs", "dist/ort-wasm-simd-threaded.mjs", "dist/ort-wasm-simd-threaded.wasm"],
}


def write_demo(
    folder: Path,
    student: Path,
    name: str,
    samples: Sequence[str] = (),
    report: StudentReport | None = None,
    transformers_js: Path | None = None,
) -> None:
    """Write a page in which a person types a text and sees labels, probabilities and milliseconds.

    `python -m http.server` in the folder serves it, without a network.

    Args:
        folder: The folder to write.
        student: The folder of a shipped text classifier; its int8 graph is taken if there is one.
        name: The title.
        samples: Texts to start from.
        report: Figures of teacher and student to show beside.
        transformers_js: A `node_modules` folder with `@huggingface/transformers` and the `onnxruntime-web` that came
            with it; default npm fetches both (`npm pack`, which runs no scripts).

    Raises:
        ValueError: If the student has no ONNX graph, or `transformers_js` lacks a file.
        RuntimeError: If npm fails.
    """
    graph = next((student / file for file in (ONNX_INT8, ONNX) if (student / file).exists()), None)
    if graph is None:
        raise ValueError(f"{student} holds no {ONNX}: ship the student first.")
    with _packages(transformers_js) as packages:
        scripts = [packages / package / file for package, files in SCRIPTS.items() for file in files]
        if missing := [str(script) for script in scripts if not script.exists()]:
            raise ValueError(f"There is no {missing[0]}: pass the node_modules folder of {TRANSFORMERS} 4.")
        shutil.copytree(PAGE, folder, dirs_exist_ok=True)
        (folder / "transformers.js").mkdir(exist_ok=True)
        for script in scripts:
            shutil.copy(script, folder / "transformers.js")
    copied = folder / "student"
    (copied / graph.relative_to(student)).parent.mkdir(parents=True, exist_ok=True)
    for file in (*student.glob("*.json"), graph):
        shutil.copy(file, copied / file.relative_to(student))
    int8 = graph == student / ONNX_INT8
    content = {
        "name": name,
        "dtype": "q8" if int8 else "fp32",
        "format": "ONNX int8" if int8 else "ONNX float32",
        "megabytes": size_of(graph) / 1e6,
        "samples": list(samples),
        "figures": _figures(report) if report else [],
    }
    (folder / "demo.json").write_text(json.dumps(content, indent=1), encoding="utf8")


def _figures(report: StudentReport) -> list[list[str]]:
    """A header, and a line for each model and engine."""
    metric = distinct_metrics(report.measurements)[0]
    lines = [["", "engine", metric, "MB", "ms"]]
    for m in report.measurements:
        numbers = [f"{m.metrics[metric][0]:.3f}", f"{m.megabytes:.1f}", f"{m.latency_ms['p50']:.1f}"]
        lines.append([m.model, m.engine_name, *numbers])
    return lines


@contextmanager
def _packages(folder: Path | None) -> Iterator[Path]:
    """A folder with the packages: the one that was passed, or a temporary one that npm fills."""
    if folder is not None:
        yield folder
        return
    with tempfile.TemporaryDirectory() as temporary:
        packages = Path(temporary)
        _fetch(TRANSFORMERS, "4", packages)
        wanted = json.loads((packages / TRANSFORMERS / "package.json").read_text(encoding="utf8"))
        _fetch(ONNX_RUNTIME, wanted["dependencies"][ONNX_RUNTIME], packages)
        yield packages


def _fetch(package: str, version: str, folder: Path) -> None:
    command = ["npm", "pack", "--silent", "--pack-destination", str(folder), f"{package}@{version}"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        reason = " ".join((getattr(error, "stderr", "") or str(error)).split())
        raise RuntimeError(f"npm could not fetch {package}: {reason} Pass a node_modules folder instead.") from error
    with tarfile.open(folder / done.stdout.split()[-1]) as archive:
        archive.extractall(folder / package, filter="data")
    (folder / package / "package").rename(folder / f"{package}.unpacked")
    (folder / package).rmdir()
    (folder / f"{package}.unpacked").rename(folder / package)
