"""Write the API reference, recipes/guides/api.md, from the docstrings of the public names.

    pip install -e '.[docs]' && python recipes/api_reference.py

griffe reads the source; nothing is imported. The page must be written again whenever a signature or a docstring of it
changes (tests/recipes/test_api_reference.py).
"""

import re
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from textwrap import indent

import griffe

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "recipes/guides/api.md"
WIDTH = 100  # of a signature on one line
# The names of hf_tinybert in the order of the page; other names, that a user passes or subclasses, with their modules.
CONTENTS = {
    "Trainer": "DistillationTrainer DistillationArguments cache_logits",
    "Students": "create_student TINYBERT4 TINYBERT6 map_layers trim_vocabulary transfer_vocabulary",
    "Whole runs": "task_distillation general_distillation pipelines.early_stopping.EarlyStopping diagnose",
    "Losses": "DistillationLoss AttentionLoss HiddenLoss EmbeddingLoss PredictionLoss TaskLoss RelationLoss "
    "MiniLMLoss AttentionKLLoss CosineLoss PatienceLoss SentenceLoss activations.Activations activations.QueryKey "
    "losses.schedules.scheduled_weight losses.schedules.balance_factors teachers.ensemble.combine_logits",
    "Tasks": "Task TextClassification TokenClassification QuestionAnswering MultipleChoice UnlabelledText "
    "GLUE SQUAD SQUAD_V2 SWAG read_conll read_squad squad_scores tasks.base.ExampleScorer",
    "Transfer data and augmentation": "load_transfer tasks.transfer.TransferData Augmentation RandomWords MaskedWords "
    "WordVectors CombinedAugmentation",
    "Report and plots": "StudentReport plot_losses plot_attention plot_similarity plot_latency sentence_embeddings",
    "Export": "ship_student export_onnx quantize_onnx halve_onnx load_onnx export_openvino quantize_openvino "
    "load_openvino save_half",
    "Hub and model card": "push_folder extend_card DataRecord __version__",
    "Other architectures and prediction heads": "models.architectures.base.Architecture "
    "models.architectures.blocks.Block models.architectures.blocks.Attention "
    "models.architectures.blocks.FeedForward models.prediction_heads.PredictionHead",
}
INTRODUCTION = """# API reference

This page is written by [api_reference.py](../api_reference.py) from the docstrings. Edit those, and run it again.

Names without a module in front are imported from `hf_tinybert`. B, H, S, D = batch, attention heads, sequence length,
hidden size."""


def load() -> griffe.Module:
    """The package as griffe reads it."""
    options = {"warn_missing_types": False, "returns_multiple_items": False}
    return griffe.load("hf_tinybert", search_paths=[ROOT], docstring_parser="google", docstring_options=options)


def signature(name: str, parameters: Iterable[griffe.Parameter], returns: object = None) -> str:
    """A call with types and defaults, on one line if it fits and otherwise with one line for each parameter."""
    parts, after_star = [], False
    stars = {griffe.ParameterKind.var_positional: "*", griffe.ParameterKind.var_keyword: "**"}
    for parameter in parameters:
        if parameter.name in ("self", "cls"):
            continue
        if parameter.kind is griffe.ParameterKind.keyword_only and not after_star:
            parts.append("*")
        after_star |= parameter.kind in (griffe.ParameterKind.keyword_only, griffe.ParameterKind.var_positional)
        part, star = parameter.name, stars.get(parameter.kind, "")
        equals = "="
        if parameter.annotation is not None:
            part, equals = f"{part}: {parameter.annotation}", " = "
        default = re.sub(r"^\(lambda: (.*)\)\(\)$", r"\1", str(parameter.default))  # a default_factory
        parts.append(star + part + ("" if star or parameter.default is None else equals + default))
    end = ")" if returns is None else f") -> {returns}"
    line = f"{name}({', '.join(parts)}{end}"
    return line if len(line) <= WIDTH else f"{name}(\n" + "".join(f"    {part},\n" for part in parts) + end


def sections(item: griffe.Object) -> Iterator[str]:
    """The docstring as Markdown."""
    for section in item.docstring.parsed if item.docstring else ():
        kind = section.kind.value
        if kind == "text":
            yield section.value
        elif kind == "returns":
            yield f"**Returns:** {section.value[0].description}"
        else:
            names = [str(entry.annotation).strip("()") if kind == "raises" else entry.name for entry in section.value]
            yield f"**{'Args' if kind == 'parameters' else kind.capitalize()}:**"
            yield "\n".join(
                f"- `{name}`: {indent(entry.description, '  ').lstrip()}"
                for name, entry in zip(names, section.value, strict=True)
            )


def call(name: str, item: griffe.Class | griffe.Function) -> str:
    """What one writes to make the object or call the function."""
    returns = item.returns if item.is_function else None
    return f"```python\n{signature(name, item.parameters, returns)}\n```"


def members(item: griffe.Class) -> Iterator[str]:
    """The properties and methods that the class documents, apart from those that a base class of the package does."""
    inherited = {name for base in item.mro() for name, member in base.members.items() if member.docstring}
    documented = [
        member
        for name, member in item.members.items()
        if member.docstring and name not in inherited and (member.is_public or name == "__call__")
    ]
    properties = [member for member in documented if member.is_attribute]
    if properties:
        yield "**Properties:**"
        yield "\n".join(f"- `{p.name}`: {indent(p.docstring.value, '  ').lstrip()}" for p in properties)
    for method in (member for member in documented if member.is_function):
        yield f"#### `{item.name}.{method.name}`"
        yield call(method.name if "classmethod" not in method.labels else f"{item.name}.{method.name}", method)
        yield from sections(method)


def entry(package: griffe.Module, path: str) -> Iterator[str]:
    """One name with all that it has."""
    item = package[path]
    item = item.final_target if item.is_alias else item
    yield f"### `{item.name}`"
    bases = [f"`{base}`" for base in item.bases] if item.is_class else []
    source = item.relative_package_filepath
    yield f"[{source}](../../{source})" + (f", a subclass of {', '.join(bases)}" if bases else "")
    if item.is_attribute:
        yield from sections(item)
        return
    yield call(path if "." not in path else f"hf_tinybert.{path}", item)
    yield from sections(item)
    if item.is_class:
        yield from members(item)


def page() -> str:
    """The whole page."""
    package, names, contents, parts = load(), set(), [], []
    for group, paths in CONTENTS.items():
        listed = [path.split(".")[-1] for path in paths.split()]
        names.update(listed)
        contents.append(f"- [{group}](#{group.lower().replace(' ', '-')}): {', '.join(f'`{n}`' for n in listed)}")
        parts += [f"## {group}", *chain.from_iterable(entry(package, path) for path in paths.split())]
    text = "\n\n".join([INTRODUCTION, "\n".join(contents), *parts]) + "\n"
    return re.sub(r"(?<!# )`(\w+)`", lambda m: f"[{m[0]}](#{m[1].lower()})" if m[1] in names else m[0], text)


if __name__ == "__main__":
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(page(), encoding="utf8")
