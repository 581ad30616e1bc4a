"""The options of the command line as tables, made of the source: of signatures, and of the words of docstrings."""

import ast
import re
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1] / "jflow"
COMMANDS = {"sample": "sample", "evaluate": "evaluate", "export": "export", "show": "data show", "demo": "demo"}


def tables() -> str:
    """A section for each recipe of `jflow train`, and for each other command with options."""
    cli = _definitions(PACKAGE / "cli.py")
    recipes = {}
    for file in sorted((PACKAGE / "recipes").glob("*.py")):
        recipes |= _definitions(file)
    parts = []
    for kind in ast.unparse(cli["train"].args.args[0].annotation).split(" | "):
        name = re.sub("(?!^)(?=[A-Z])", "-", kind).lower()
        rows = [*_fields(recipes[kind]), *_arguments(cli["train"], cli)]
        parts.append(_section(f"train {name}", recipes[kind], rows))
    parts += [_section(shown, cli[name], _arguments(cli[name], cli)) for name, shown in COMMANDS.items()]
    return "\n\n".join(parts)


def _definitions(file):
    """The functions and classes of a file, by name."""
    return {node.name: node for node in ast.parse(file.read_text()).body if hasattr(node, "name")}


def _section(command, node, rows):
    first = ast.get_docstring(node).splitlines()[0]
    lines = [f"| {name} | {default} | {' '.join(words.split())} |" for name, default, words in rows]
    head = f"## jflow {command}\n\n{first}\n\n| option | default | what it is |\n|---|---|---|"
    return "\n".join([head, *lines])


def _fields(kind):
    """The options that the fields of a dataclass are."""
    for node, after in zip(kind.body, kind.body[1:], strict=False):
        if isinstance(node, ast.AnnAssign) and "ClassVar" not in ast.unparse(node.annotation):
            yield _flag(node.target.id), _default(node.value), after.value.value


def _arguments(function, cli):
    """The options that the arguments of a command are; a dataclass gives its fields."""
    words = dict(re.findall(r"^ {4}(\w+): (.*(?:\n {5,}.*)*)", ast.get_docstring(function), re.MULTILINE))
    for argument in function.args.posonlyargs:
        yield f"`{argument.arg.upper()}`", "", words[argument.arg]
    for argument, default in zip(function.args.kwonlyargs, function.args.kw_defaults, strict=True):
        kind = ast.unparse(argument.annotation)
        if kind in cli:
            yield from _fields(cli[kind])
        else:
            yield _flag(argument.arg), _default(default), words[argument.arg]


def _flag(name):
    return f"`--{name.replace('_', '-')}`"


def _default(node):
    """The default as it is written on the command line."""
    if node is None:
        return "must be given"
    value = ast.literal_eval(node.args[0] if isinstance(node, ast.Call) else node)
    if value is None or value is False:
        return "" if value is None else "off"
    return f"`{' '.join(map(str, value)) if isinstance(value, tuple) else value}`"
