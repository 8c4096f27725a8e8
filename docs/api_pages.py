"""The reference: a page for each module, read from its source, and one table of all parameters of a run."""

import ast
import io
import re
import tokenize
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from site_map import NBS, ROOT, relative

LIBRARY = ROOT / "glacier_nb"
KINDS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
NAME_IN_TEXT = re.compile(r"(?<!`)`([A-Za-z_]\w*)(\(\))?`(?!`)")
INHERITED = ("Exception", "ValueError", "RuntimeError", "OSError")


@dataclass
class Entry:
    "What the reference says about one name."

    kind: str  # of Sphinx's Python domain: function, class, exception, method, property, attribute, data
    name: str
    signature: str  # what follows the name
    text: str  # docstring
    parameters: list[tuple[str, str, str, str]] = field(default_factory=list)  # name, type, default, meaning
    options: dict[str, str] = field(default_factory=dict)  # of the directive
    members: list["Entry"] = field(default_factory=list)


def modules() -> dict[str, Path]:
    "All modules by their full name."
    found = sorted(p for p in LIBRARY.rglob("[a-z]*.py"))
    return {".".join(p.relative_to(ROOT).with_suffix("").parts): p for p in found}


def module_of(path: Path) -> str | None:
    "The module that a notebook exports; None if it exports none."
    name = path.stem[3:] if path.parent != NBS else None
    full = f"glacier_nb.{path.parent.name}"
    return next((m for m in (f"{full}.{name}", full) if name and m in modules()), None)


@cache
def tree(module: str) -> ast.Module:
    "The parsed source of a module."
    return ast.parse(modules()[module].read_text(encoding="utf-8"))


def all_names(module: str) -> list[str]:
    "`__all__` of a module."
    for node in tree(module).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return ast.literal_eval(node.value)
    return []


@cache
def exported_names() -> dict[str, str]:
    "The module of every exported name; no two modules export the same."
    return {name: module for module in modules() for name in all_names(module)}


@cache
def front_door() -> dict[str, str]:
    "The names that `glacier_nb` itself offers, and their full names."
    for node in ast.walk(ast.parse((LIBRARY / "__init__.py").read_text(encoding="utf-8"))):
        if isinstance(node, ast.keyword) and node.arg == "submod_attrs":
            found = ast.literal_eval(node.value)
            return {name: f"glacier_nb.{m}.{name}" for m, names in found.items() for name in names}
    return {}


@cache
def comments(module: str) -> dict[int, tuple[str, bool]]:
    "The comments of a module by line, and whether each has its line to itself."
    text = modules()[module].read_text(encoding="utf-8")
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    return {
        t.start[0]: (t.string.lstrip("# ").strip(), t.line.lstrip().startswith("#"))
        for t in tokens
        if t.type == tokenize.COMMENT
    }


def comment(module: str, node: ast.AST) -> str:
    "The docment of a parameter, field or return value: beside it, else in the lines above it."
    found = comments(module)
    for line in (node.end_lineno, node.lineno):
        if line in found and not found[line][1]:
            return found[line][0]
    above, line = [], node.lineno - 1
    while line in found and found[line][1]:
        above.append(found[line][0])
        line -= 1
    return " ".join(reversed(above))


def source_text(node: ast.AST | None) -> str:
    "Code of a type or default, as in the source."
    return "" if node is None else ast.unparse(node)


def default_text(node: ast.AST | None) -> str:
    "A default, shortened where it is a long expression."
    text = source_text(node)
    return text if len(text) <= 60 else text[:57] + "..."


def _listed(args: ast.arguments) -> list[tuple[str, ast.arg, ast.AST | None]]:
    "Mark (`*`, `**` or nothing), parameter and default, in order."
    plain = [*args.posonlyargs, *args.args]
    defaults = [None] * (len(plain) - len(args.defaults)) + list(args.defaults)
    rows = [("", arg, default) for arg, default in zip(plain, defaults, strict=True)]
    if args.vararg:
        rows.append(("*", args.vararg, None))
    elif args.kwonlyargs:
        rows.append(("*", ast.arg(""), None))
    rows += [("", arg, default) for arg, default in zip(args.kwonlyargs, args.kw_defaults, strict=True)]
    if args.kwarg:
        rows.append(("**", args.kwarg, None))
    return rows


def _signature(rows: list[tuple[str, ast.arg, ast.AST | None]], returns: ast.AST | None) -> str:
    "Parameters and the type of the result, as Sphinx writes them."
    parts = []
    for mark, arg, default in rows:
        text = mark + arg.arg
        text += f": {ast.unparse(arg.annotation)}" if getattr(arg, "annotation", None) else ""
        equals = " = " if getattr(arg, "annotation", None) else "="
        parts.append(text + (f"{equals}{default_text(default)}" if default is not None else ""))
    return f"({', '.join(parts)})" + (f" -> {ast.unparse(returns)}" if returns is not None else "")


def _decorators(node: ast.AST) -> list[str]:
    "Decorators as text."
    return [ast.unparse(d) for d in node.decorator_list]


def function_entry(module: str, node: ast.FunctionDef, method: bool = False) -> Entry:
    "A function, a method or a property."
    marks = _decorators(node)
    is_property = any(m in ("property", "cached_property") or "as_prop=True" in m for m in marks)
    rows = _listed(node.args)
    rows = rows[1:] if method and "staticmethod" not in marks else rows
    text = ast.get_docstring(node) or ""
    if is_property:
        options = {"type": source_text(node.returns)} if node.returns is not None else {}
        about = comment(module, node.returns) if node.returns is not None else ""
        return Entry("property", node.name, "", text + (f" ({about})" if about else ""), options=options)
    parameters = [
        (mark + arg.arg, source_text(arg.annotation), default_text(default), comment(module, arg))
        for mark, arg, default in rows
        if arg.arg
    ]
    about = comment(module, node.returns) if node.returns is not None else ""
    if about:
        parameters.append(("returns", source_text(node.returns), "", about))
    options = {m: "" for m in ("classmethod", "staticmethod") if m in marks}
    kind = "method" if method else "function"
    if kind == "function" and any(m.startswith("contextmanager") for m in marks):
        text += " (a context manager)"
    return Entry(kind, node.name, _signature(rows, node.returns), text, parameters, options)


def _patched(module: str, name: str) -> list[ast.FunctionDef]:
    "Methods that `@patch` adds to a class in its module."
    found = []
    for node in tree(module).body:
        marks = _decorators(node) if isinstance(node, ast.FunctionDef) else []
        patched = any(m.startswith("patch") for m in marks) and node.args.args
        if patched and source_text(node.args.args[0].annotation).strip("'") == name:
            found.append(node)
    return found


def _fields(module: str, node: ast.ClassDef) -> list[tuple[str, str, str, str]]:
    "Annotated fields of a class: name, type, default, meaning."
    return [
        (n.target.id, source_text(n.annotation), default_text(n.value), comment(module, n))
        for n in node.body
        if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name) and not n.target.id.startswith("_")
    ]


def class_entry(module: str, node: ast.ClassDef) -> Entry:
    "A class with its fields, members of an enumeration, methods and properties."
    bases = [ast.unparse(b) for b in node.bases]
    error = node.name.endswith(("Error", "Warning", "Interrupted")) or set(bases) & set(INHERITED)
    entry = Entry("exception" if error else "class", node.name, "", ast.get_docstring(node) or "")
    if bases:
        entry.text += f"\n\nBases: {', '.join(f'`{b}`' for b in bases)}"
    dataclass_ = any(m.startswith("dataclass") for m in _decorators(node))
    fields = _fields(module, node)
    if node.name == "TrainConfig":
        entry.text += "\n\nIts fields are the [parameters of a run](parameters.md)."
    elif dataclass_ or any(b.endswith("NamedTuple") for b in bases):
        shown = [f for f in fields if not f[1].startswith("ClassVar")]
        parts = [f"{n}: {t}" + (f" = {d}" if d else "") for n, t, d, _ in shown]
        entry.signature, entry.parameters = f"({', '.join(parts)})", shown
    else:
        entry.members += [
            Entry("attribute", n, "", about, options={"type": kind}) for n, kind, _, about in fields
        ]
    for item in node.body:
        if isinstance(item, ast.FunctionDef) and item.name == "__init__":
            made = function_entry(module, item, method=True)
            entry.signature, entry.parameters = made.signature.split(" -> ")[0], made.parameters
    if any("Enum" in b or b == "Flag" for b in bases):
        entry.members += _enum_members(module, node)
    entry.members += _methods(module, node)
    return entry


def _enum_members(module: str, node: ast.ClassDef) -> list[Entry]:
    "The members of an enumeration."
    return [
        Entry("attribute", t.id, "", comment(module, item), options={"value": default_text(item.value)})
        for item in node.body
        if isinstance(item, ast.Assign)
        for t in item.targets
        if isinstance(t, ast.Name) and not t.id.startswith("_")
    ]


def _methods(module: str, node: ast.ClassDef) -> list[Entry]:
    "Public methods and properties, in the order of the source; setters are left out."
    found = [n for n in [*node.body, *_patched(module, node.name)] if isinstance(n, ast.FunctionDef)]
    named = {n.name: n for n in reversed(found) if not n.name.startswith("_")}
    order = [n.name for n in found if n.name in named]
    return [function_entry(module, named[name], method=True) for name in dict.fromkeys(order)]


def entries(module: str) -> list[Entry]:
    "What a module exports, in the order of its source."
    names, found = set(all_names(module)), []
    for node in tree(module).body:
        if isinstance(node, KINDS) and node.name in names:
            patched = any(m.startswith("patch") for m in _decorators(node))
            if not patched:
                make = class_entry if isinstance(node, ast.ClassDef) else function_entry
                found.append(make(module, node))
        for target in _assigned(node):
            if target in names:
                options = {"value": default_text(node.value)}
                found.append(Entry("data", target, "", comment(module, node), options=options))
    unique = {entry.name: entry for entry in found}
    missing = names - unique.keys()
    if missing:
        raise ValueError(f"{module} exports names that its source does not define at the top: {missing}")
    return list(unique.values())


def _assigned(node: ast.AST) -> list[str]:
    "Names that a statement assigns."
    if isinstance(node, ast.Assign):
        return [n.id for t in node.targets for n in ast.walk(t) if isinstance(n, ast.Name)]
    return [node.target.id] if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) else []


def _definition(name: str, kind: str, default: str, about: str) -> str:
    "One parameter as an entry of a definition list."
    term = f"*returns* `{kind}`" if name == "returns" else f"`{name}`" + (f" `{kind}`" if kind else "")
    term += f" = `{default}`" if default else ""
    return f"{term}\n: {_prose(about) or '–'}"


def _prose(text: str) -> str:
    "A docstring or comment as Markdown: what it means as text stays text."
    escaped = re.sub(r"(?<!`)([<>*$])(?![^`]*`(?:[^`]*`[^`]*`)*[^`]*$)", r"\\\1", text)
    return re.sub(r"^(\s*)([#|:-])", r"\1\\\2", escaped)


def _name_link(match: re.Match) -> str:
    "Code in a docstring that is an exported name as a link to it."
    module = exported_names().get(match[1])
    plain = match[1].islower() and "_" not in match[1] and not match[2]
    return (
        match[0]
        if module is None or plain
        else f"{{py:obj}}`{match[1]}{match[2] or ''} <{module}.{match[1]}>`"
    )


def directive(entry: Entry, level: int = 0, lesson: str = "") -> str:
    "An entry, and all it holds, as a directive of the Python domain."
    inner = [directive(member, level + 1) for member in entry.members]
    fence = "`" * (3 + max((len(re.match("`+", text)[0]) - 2 for text in inner), default=0))
    options = [
        f":{key}: {value}".rstrip() for key, value in entry.options.items() if value or key.endswith("method")
    ]
    text = "\n\n".join(NAME_IN_TEXT.sub(_name_link, _prose(part)) for part in entry.text.split("\n\n"))
    about = [entry for entry in entry.parameters if entry[3] or entry[0] != "returns"]
    listed = "\n\n".join(_definition(*row) for row in about if row[3])
    body = [part for part in (text, lesson, f"{{.params}}\n{listed}" if listed else "", *inner) if part]
    head = [f"{fence}{{py:{entry.kind}}} {entry.name}{entry.signature}", *options]
    return "\n".join(head) + "\n\n" + "\n\n".join(body) + f"\n{fence}"


def module_page(module: str, lesson: Path, lesson_page: str, target) -> str:
    "The page of a module: its names with signatures, docstrings, parameters and the lesson of each."
    short = module.removeprefix("glacier_nb.")
    page = f"reference/{short}"
    here = relative(page, lesson_page)
    parts = [
        f"# {short}",
        f"{{.subtitle}}\n{ast.get_docstring(tree(module)).splitlines()[0]}",
        f"{{.where}}\n[lesson]({here}.ipynb) · `import {module}` · `{lesson.relative_to(ROOT).as_posix()}`",
        f"```{{py:module}} {module}\n```",
    ]
    for entry in entries(module):
        full = f"{module}.{entry.name}"
        if front_door().get(entry.name) == full:
            entry.options["canonical"] = f"glacier_nb.{entry.name}"
        how = f"{{.where}}\n[explained in the lesson]({here}.ipynb#{target(module, entry.name)})"
        parts.append(directive(entry, lesson=how))
    if len(parts) == 4:
        parts.append("This module exports no names: other modules and the tests import it as a whole.")
    return "\n\n".join(parts) + "\n"


def parameter_groups() -> dict[str, list[str]]:
    "Names of the parameters of a run under the comments that group them in `TrainConfig`."
    module = "glacier_nb.config.training"
    node = next(n for n in tree(module).body if isinstance(n, ast.ClassDef) and n.name == "TrainConfig")
    groups, current = {}, "run"
    for item in node.body:
        if not isinstance(item, ast.AnnAssign) or "ClassVar" in ast.unparse(item.annotation):
            continue
        above = comments(module).get(item.lineno - 1)
        if above and above[1]:
            current = above[0]
        groups.setdefault(current, []).append(item.target.id)
    return groups
