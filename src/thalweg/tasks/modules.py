"""Tasks from a person's own Python file."""

import ast
import importlib.util
import inspect
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

from thalweg.tasks.blame import first_line, is_own, place
from thalweg.tasks.split import TaskError
from thalweg.tasks.task import Task

__all__ = ["load_module"]


def load_module(text: str) -> Task:
    """The task that a function in a Python file gives: ``my_module.py:task``.

    The file is run anew at every call, with what lies beside it importable. It stays in
    `sys.modules`, so that its classes can be pickled. A task without a name gets that of the file,
    or ``my_module-function`` of any other function than ``task``.

    Args:
        text: path of the file, a colon and the name of a function without arguments, or of a
            `Task`.

    Raises:
        TaskError: naming file, line and what to do, if that is no task.
    """
    path, name = _parts(text)
    with _importable(path.parent):
        module = _run(path)
        if not hasattr(module, name):
            _no_such_name(path, name, _names(module))
        found = getattr(module, name)
        if not isinstance(found, Task):
            found = _call(path, name, found)
    if found.name != "task":
        return found
    named = path.stem if name == "task" else f"{path.stem}-{name}"  # or reports would have one path
    return replace(found, name=named, title=named if found.title == "task" else found.title)


def _parts(text: str) -> tuple[Path, str]:
    file, colon, name = text.rpartition(":")
    if not colon or not name.isidentifier():
        path = Path(text if not colon else file)
        if path.is_file():
            known = ", ".join(_written(path)) or "no functions"
            example = next(iter(_written(path)), "task")
            raise TaskError(
                "task",
                f"{text!r} does not say which function of the file makes the task, as "
                f"{path}:{example} does; the file has {known}",
            )
        raise TaskError("task", f"{text!r} is not FILE.py:FUNCTION, and there is no such file")
    path = Path(file).resolve()
    if path.is_dir():
        raise TaskError("task", f"{file} is a folder; give the path of a Python file in it")
    if not path.is_file():
        beside = sorted(p.name for p in path.parent.glob("*.py")) if path.parent.is_dir() else []
        near = get_close_matches(path.name, beside, n=1)
        hint = f"did you mean {near[0]}?" if near else f"it was looked for in {path.parent}"
        raise TaskError("task", f"there is no file {file}; {hint}")
    return path, name


def _written(path: Path) -> list[str]:
    """Names of a file's functions, which is not run."""
    try:
        tree = ast.parse(path.read_text())
    except (SyntaxError, ValueError):
        return []
    return [n.name for n in tree.body if isinstance(n, ast.FunctionDef) and n.name[0] != "_"]


def _names(module: ModuleType) -> list[str]:
    """Of what a module has itself that could make a task."""
    return [
        name
        for name, value in vars(module).items()
        if isinstance(value, Task)
        or (inspect.isfunction(value) and value.__module__ == module.__name__ and name[0] != "_")
    ]


def _no_such_name(path: Path, name: str, known: list[str]) -> NoReturn:
    near = get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    there = f"it has {', '.join(known)}" if known else "it has no functions"
    raise TaskError("task", f"{path.name} has no {name!r}; {hint}{there}")


def _run(path: Path) -> ModuleType:
    """The module of a file, run anew."""
    name = _module_name(path)
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise TaskError("task", f"{path.name} is no Python file; its name must end in .py")
    module = importlib.util.module_from_spec(spec)
    before = sys.modules.get(name)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        if before is None:
            del sys.modules[name]
        else:
            sys.modules[name] = before
        _blame(path, error, "when it is imported")
    return module


def _module_name(path: Path) -> str:
    """The file's own name, unless something that others rely on has that."""
    stem, other = path.stem, f"task_of_{path.stem}"
    if not stem.isidentifier() or stem in sys.stdlib_module_names:
        return other
    if stem in sys.modules:
        return stem if _is_persons(sys.modules[stem]) else other
    try:
        found = importlib.util.find_spec(stem)
    except (ImportError, ValueError):
        return other
    free = found is None or found.origin is None or is_own(found.origin)
    return stem if free else other


def _is_persons(module: ModuleType) -> bool:
    file = getattr(module, "__file__", None)
    return file is not None and is_own(file)


@contextmanager
def _importable(folder: Path) -> Iterator[None]:
    """Have what lies in a folder importable, and nothing that another folder has by that name."""
    aside = {}
    for name, module in list(sys.modules.items()):
        top = name.partition(".")[0]
        beside = (folder / f"{top}.py").is_file() or (folder / top).is_dir()
        if beside and _is_persons(module) and not _is_in(module, folder):
            aside[name] = sys.modules.pop(name)
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        if str(folder) in sys.path:  # unless the file itself took it away
            sys.path.remove(str(folder))
        for name, module in aside.items():
            sys.modules.setdefault(name, module)


def _is_in(module: ModuleType, folder: Path) -> bool:
    return Path(str(module.__file__)).resolve().is_relative_to(folder)


def _call(path: Path, name: str, function: Any) -> Task:
    if not callable(function):
        raise TaskError(
            "task",
            f"{path.name}:{name} is a {type(function).__name__}; it must be a function that "
            f"returns a thalweg.Task, or one itself",
        )
    try:
        inspect.signature(function).bind()
    except TypeError as error:
        raise TaskError(
            "task",
            f"{path.name}:{name} cannot be called without arguments ({error}); give them defaults",
        ) from None
    except ValueError:  # builtins without a signature
        pass
    try:
        found = function()
    except (Exception, SystemExit) as error:
        _blame(path, error, f"in {name}()")
    if not isinstance(found, Task):
        raise TaskError(
            "task",
            f"{path.name}:{name} returned {_a(found)}; it must return a thalweg.Task(model=..., "
            f"train=...)",
        )
    return found


def _a(value: Any) -> str:
    return "None (is a return missing?)" if value is None else f"a {type(value).__name__}"


def _blame(path: Path, error: BaseException, when: str) -> NoReturn:
    """Say in one sentence which line of a person's file raised what."""
    where = place(error, path) or path.name
    if isinstance(error, SystemExit):
        problem = (
            f"{where} ends Python {when} (SystemExit: {error}); put what only a script does under "
            f'if __name__ == "__main__":'
        )
    elif isinstance(error, TaskError):
        problem = f"{where}: {error}"
    elif isinstance(error, ModuleNotFoundError):
        problem = (
            f"{where} raises {first_line(error)}; install it for {sys.executable}, or put it "
            f"beside the file"
        )
    else:
        problem = f"{where} raises {first_line(error)}, {when}; correct that line"
    raise TaskError("task", problem) from error
