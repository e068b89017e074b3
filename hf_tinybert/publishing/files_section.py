"""The section of a model card that lists a student's files, and the lines with which each runtime loads them."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from huggingface_hub import ModelCard

SECTION = "## Files"
HEADER = ["format", "file", "MB", "agreement", "score", ""]
# What the tokenizer is called with, by pipeline tag; other tasks take one text.
ARGUMENTS = {
    "fill-mask": '"A sentence of [MASK]."',
    "question-answering": '"Who came?", "Anna came."',
    "multiple-choice": '["A text."] * 2, ["One end.", "Another end."], padding=True',
}
# What the model is called with; other tasks take what the tokenizer returns.
INPUTS = {"multiple-choice": "{name: ids[None] for name, ids in inputs.items()}"}  # one row of two choices
JAVASCRIPT_TASKS = (
    "text-classification",
    "token-classification",
    "question-answering",
    "fill-mask",
    "feature-extraction",
)
ONNX_RUNTIME = """\
import onnxruntime
from transformers import AutoTokenizer

session = onnxruntime.InferenceSession(f"{{folder}}/{file}")
inputs = AutoTokenizer.from_pretrained(folder)({arguments}, return_tensors="np")
outputs = session.run(None, {inputs})"""
OPENVINO = """\
import openvino
from transformers import AutoTokenizer

model = openvino.compile_model(f"{{folder}}/{file}", "CPU")
inputs = AutoTokenizer.from_pretrained(folder)({arguments}, return_tensors="np")
outputs = model({inputs})"""
JAVASCRIPT = """\
import {{ pipeline }} from "{package}";

const student = await pipeline("{task}", "{name}", {{ dtype: "{dtype}" }});
console.log(await student({arguments}));"""


@dataclass(frozen=True)
class ShippedFile:
    """A file of a student's folder, or one that was refused.

    Attributes:
        format: The name of the format.
        path: The file, relative to the folder; None if it was refused.
        megabytes: Its size.
        agreement: Its agreement with torch on the held-out rows; None if it was not measured.
        score: Its score on the held-out rows; None if it was not measured.
        note: Why it was refused.
    """

    format: str
    path: str | None
    megabytes: float | None = None
    agreement: float | None = None
    score: float | None = None
    note: str = ""

    @property
    def cells(self) -> list[str]:
        """What a table says about it, in the order of `HEADER`."""
        numbers = ((self.megabytes, ".1f"), (self.agreement, ".4f"), (self.score, ".4f"))
        shown = ["–" if value is None else format(value, spec) for value, spec in numbers]
        return [self.format, self.path or "–", *shown, self.note]


def with_files(
    card: ModelCard,
    files: Sequence[ShippedFile],
    task: str,
    name: str,
    on_hub: bool = False,
    rows: int = 0,
    notes: Sequence[str] = (),
) -> ModelCard:
    """A card whose last section lists the files; an earlier one of that name is replaced.

    Args:
        card: The card. It does not change.
        files: The files.
        task: The Hub's pipeline tag.
        name: What the student is loaded by: a folder or an id of the Hub.
        on_hub: Whether `name` is an id of the Hub.
        rows: The number of held-out rows that agreement and score were measured on; 0 if they were not.
        notes: Paragraphs below the table.

    Returns:
        A new card.
    """
    rule = ["---"] * len(HEADER)
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in [HEADER, rule, *(file.cells for file in files)])
    written = {file.format: file.path for file in files if file.path}
    described = ModelCard(str(card))
    parts = [
        re.split(rf"^{SECTION}$", described.text, flags=re.MULTILINE)[0].rstrip(),
        SECTION,
        table,
        f"Score, and agreement with torch, on {rows:,} held-out rows." if rows else "",
        *notes,
        *_snippets(written, task, name, on_hub),
    ]
    described.text = "\n\n".join(filter(None, parts)) + "\n"
    tags = {"onnx": ["onnx", "transformers.js"], "openvino": ["openvino"]}
    more = [tag for format, names in tags.items() if format in written for tag in names]
    described.data.tags = list(dict.fromkeys([*(described.data.tags or ()), *more]))
    described.data["library_name"], described.data["pipeline_tag"] = "transformers", task
    return described


def _snippets(written: dict[str, str], task: str, name: str, on_hub: bool) -> list[str]:
    """Lines to run, for each runtime that has a file."""
    arguments = ARGUMENTS.get(task, '"A sentence."')
    inputs = INPUTS.get(task, "dict(inputs)")
    folder = f'folder = "{name}"'
    if on_hub:
        folder = f'from huggingface_hub import snapshot_download\n\nfolder = snapshot_download("{name}")'
    parts = []
    for runtime, code, formats in (
        ("ONNX Runtime", ONNX_RUNTIME, ("int8", "onnx")),
        ("OpenVINO", OPENVINO, ("openvino", "openvino_int8")),
    ):
        if file := next((written[format] for format in formats if format in written), None):
            lines = code.format(file=file, arguments=arguments, inputs=inputs)
            parts.append(f"With {runtime}:\n\n```python\n{folder}\n\n{lines}\n```")
    if "onnx" in written and task in JAVASCRIPT_TASKS:
        dtype = "q8" if "int8" in written else "fp32"
        packages = {"Node": "@huggingface/transformers"}
        if on_hub:  # a browser reads no folder of this machine
            packages["a browser"] = "./transformers.min.js"
        for where, package in packages.items():
            lines = JAVASCRIPT.format(package=package, task=task, name=name, dtype=dtype, arguments=arguments)
            parts.append(f"In {where}, with transformers.js:\n\n```js\n{lines}\n```")
    return parts
