"""The structure of the repository, read from its source: rooms and imports, sizes, words, docstrings, tests."""

import ast
import re
from collections.abc import Iterable, Iterator
from functools import cache
from itertools import chain, takewhile
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "hf_tinybert"
# Each room imports only from itself and from rooms to its right; "public names" is `hf_tinybert/__init__.py`.
ROOMS = (
    "recipes",
    "public names",
    "cli",
    "pipelines",
    "training",
    "publishing",
    "evaluation",
    "tasks",
    "teachers",
    "students",
    "losses",
    "formats",
    "models",
    "leaf modules",
)
PACKAGES = ROOMS[ROOMS.index("cli") : ROOMS.index("leaf modules")]
MOST_LEVELS, MOST_LINES, MOST_FUNCTION_LINES = 10, 350, 50
# The field has other words for these; CHANGELOG.md names the replacements.
OLD_WORDS = (
    "the cut",
    "cut (out|down)",
    "check rows",
    r"\bpieces\b",
    "swap_vocabulary",
    r"\.of\(",
    "sample=",
    "restless",
)


def source_files(*folders: Path) -> list[Path]:
    return sorted(chain.from_iterable(folder.rglob("*.py") for folder in folders))


def name_of(file: Path) -> str:
    """`losses/base.py` for a file of the package, `recipes/ner.py` for another one."""
    return file.relative_to(PACKAGE if PACKAGE in file.parents else ROOT).as_posix()


def room_of(file: Path) -> str:
    if PACKAGE not in file.parents:
        return "recipes"
    place = file.relative_to(PACKAGE).parts
    if len(place) > 1:
        return place[0]
    return "public names" if place[0] == "__init__.py" else "leaf modules"


@cache
def tree_of(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf8"))


def module_file(names: Iterable[str]) -> Path | None:
    """The file of a module of the package, whose name is given in parts below `hf_tinybert`."""
    path = PACKAGE.joinpath(*names)
    return next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()), None)


def imports_of(file: Path) -> Iterator[tuple[Path, int]]:
    """The files of the package that `file` imports, and the lines; also in functions and for typing alone."""
    for node in ast.walk(tree_of(file)):
        if isinstance(node, ast.Import):
            modules = [alias.name.split(".") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            folder = list(file.relative_to(ROOT).parts[: -node.level]) if node.level else []
            module = folder + (node.module.split(".") if node.module else [])
            modules = [[*module, alias.name] for alias in node.names]
        else:
            continue
        for package, *names in modules:
            if package == PACKAGE.name:  # the last name is a module, or an object of the module before it
                imported = module_file(names) or module_file(names[:-1])
                assert imported, f"{name_of(file)}:{node.lineno} imports hf_tinybert.{'.'.join(names)}: no such file."
                yield imported, node.lineno


def import_graph() -> dict[Path, list[Path]]:
    files = source_files(PACKAGE, ROOT / "recipes")
    return {file: [imported for imported, _ in imports_of(file)] for file in files}


def longest_chain(graph: dict[str, set[str]]) -> list[str]:
    """The longest path of a graph without circles."""

    @cache
    def below(node: str) -> list[str]:
        return [node, *max((below(other) for other in graph[node]), key=len, default=[])]

    return max(map(below, graph), key=len)


def report(offenders: Iterable[str]) -> str:
    return "\n" + "\n".join(offenders)


# ---- Imports ----


def test_every_room_imports_only_from_itself_and_from_its_right():
    offenders = [
        f"{name_of(file)}:{line} imports {name_of(imported)}"
        for file in source_files(PACKAGE, ROOT / "recipes")
        for imported, line in imports_of(file)
        if ROOMS.index(room_of(imported)) < ROOMS.index(room_of(file))
    ]
    assert not offenders, report(offenders)


def test_imports_are_written_so_that_they_can_be_read():
    """An import by a string would be hidden from the other tests."""
    hidden = re.compile(r"\b(import_module|__import__)\b")
    offenders = [name_of(file) for file in source_files(PACKAGE) if hidden.search(file.read_text(encoding="utf8"))]
    assert not offenders, report(offenders)


def test_no_circle_of_imports():
    graph, finished, offenders = import_graph(), set(), []

    def visit(file: Path, path: tuple[Path, ...]) -> None:
        if file in path:
            offenders.append(" → ".join(map(name_of, (*path[path.index(file) :], file))))
        elif file not in finished:
            for imported in graph[file]:
                visit(imported, (*path, file))
            finished.add(file)

    for file in graph:
        visit(file, ())
    assert not offenders, report(dict.fromkeys(offenders))


def test_every_file_of_the_package_is_reached():
    graph, reached = import_graph(), set()
    waiting = [PACKAGE / "__init__.py", PACKAGE / "cli/__main__.py"]
    while waiting:
        file = waiting.pop()
        if file not in reached:
            reached.add(file)
            waiting += graph[file]
            waiting += [parent for folder in file.parents if (parent := folder / "__init__.py") in graph]
    offenders = [name_of(file) for file in source_files(PACKAGE) if file not in reached]
    assert not offenders, report(offenders)


def test_rooms_stand_on_few_levels():
    graph: dict[str, set[str]] = {room: set() for room in ROOMS}
    for file, imported in import_graph().items():
        graph[room_of(file)] |= {
            room for room in map(room_of, imported) if ROOMS.index(room) > ROOMS.index(room_of(file))
        }
    levels = longest_chain(graph)
    assert len(levels) <= MOST_LEVELS, f"{len(levels)} levels: {' → '.join(levels)}"


# ---- Sizes ----


def lines_of(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of the signature and the body, without the docstring."""
    docstring = function.body[0] if ast.get_docstring(function) is not None else None
    return (
        function.end_lineno - function.lineno + 1 - (docstring.end_lineno - docstring.lineno + 1 if docstring else 0)
    )


def test_files_are_short():
    lengths = {
        file: len(file.read_text(encoding="utf8").splitlines()) for file in source_files(PACKAGE, ROOT / "recipes")
    }
    offenders = [f"{name_of(file)}: {length} lines" for file, length in lengths.items() if length > MOST_LINES]
    assert not offenders, report(offenders)


def test_functions_are_short():
    offenders = [
        f"{name_of(file)}:{node.lineno} {node.name}: {lines_of(node)} lines"
        for file in source_files(PACKAGE, ROOT / "recipes")
        for node in ast.walk(tree_of(file))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and lines_of(node) > MOST_FUNCTION_LINES
    ]
    assert not offenders, report(offenders)


# ---- Words ----


def test_old_words_are_gone():
    """In code, comments, messages and Markdown, also where a line ends between two of the words."""
    files = [*source_files(PACKAGE, ROOT / "recipes"), *ROOT.glob("*.md"), *(ROOT / "recipes").rglob("*.md")]
    patterns = [re.compile(word.replace(" ", r"\s+(?:#\s+)?"), re.IGNORECASE) for word in OLD_WORDS]
    offenders = []
    for file in files:
        text = file.read_text(encoding="utf8")
        for match in chain.from_iterable(pattern.finditer(text) for pattern in patterns):
            line = text.count("\n", 0, match.start()) + 1
            offenders.append(f"{name_of(file)}:{line} {match[0]!r}: {text.splitlines()[line - 1].strip()}")
    assert not offenders, report(offenders)


# ---- Docstrings ----


def definition(name: str, file: Path = PACKAGE / "__init__.py") -> ast.stmt:
    """The statement that defines a public name, where it is written."""
    for node in tree_of(file).body:
        if isinstance(node, ast.ImportFrom) and name in [alias.asname or alias.name for alias in node.names]:
            module = [*file.relative_to(PACKAGE).parts[: -node.level], *(node.module or "").split(".")]
            return definition(name, module_file(filter(None, module)))
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == name:
            return node
        if isinstance(node, ast.Assign | ast.AnnAssign) and name in ast.unparse(node).split("=")[0]:
            return node
    raise AssertionError(f"{name_of(file)} does not define {name}.")


def public_definitions() -> dict[str, ast.stmt]:
    (names,) = (
        ast.literal_eval(node.value)
        for node in tree_of(PACKAGE / "__init__.py").body
        if isinstance(node, ast.Assign) and node.targets[0].id == "__all__"
    )
    return {name: definition(name) for name in names}


def parameters_of(function: ast.FunctionDef) -> list[str]:
    arguments = function.args
    every = [*arguments.posonlyargs, *arguments.args, arguments.vararg, *arguments.kwonlyargs, arguments.kwarg]
    return [argument.arg for argument in filter(None, every) if argument.arg not in ("self", "cls")]


def documented_parameters(docstring: str) -> set[str]:
    """The names that the section Args of a docstring explains, as `name: meaning` or `name (type): meaning`."""
    lines = docstring.partition("Args:\n")[2].splitlines()
    section = [*takewhile(lambda line: not line or line.startswith(" "), lines)]
    indentation = min((len(line) - len(line.lstrip()) for line in section if line), default=0)
    entries = [line.partition(":")[0] for line in section if line[indentation : indentation + 1].strip()]
    return set(chain.from_iterable(re.findall(r"\w+", entry) for entry in entries))


def undocumented(name: str, node: ast.ClassDef | ast.FunctionDef) -> Iterator[str]:
    """What the docstring lacks: itself, a parameter of a function, or the whole section Args of a class."""
    docstring = ast.get_docstring(node)
    if docstring is None:
        yield f"{name}: no docstring"
    elif isinstance(node, ast.FunctionDef):
        if missing := set(parameters_of(node)) - documented_parameters(docstring):
            yield f"{name}: Args lacks {', '.join(sorted(missing))}"
    else:
        constructors = [part for part in node.body if isinstance(part, ast.FunctionDef) and part.name == "__init__"]
        if any(map(parameters_of, constructors)) and not documented_parameters(docstring):
            yield f"{name}: no section Args"


def test_public_names_have_docstrings_with_their_parameters():
    documented = {
        name: node for name, node in public_definitions().items() if isinstance(node, ast.ClassDef | ast.FunctionDef)
    }
    offenders = list(chain.from_iterable(undocumented(name, node) for name, node in documented.items()))
    assert not offenders, report(offenders)


# ---- Tests ----


def test_tests_mirror_the_package():
    folders = {file.parent.name for file in source_files(ROOT / "tests") if file.parent.parent == ROOT / "tests"}
    offenders = sorted(folders ^ {*PACKAGES, "invariants", "recipes"})
    assert not offenders, report(offenders)
