"""A hash of our own code, for the cache keys of the components that run it.

TFX's cache key of a `run_fn` Trainer, of a custom metric or of a custom executor does not contain
their code, so an edited module would be served from the cache.
"""

import ast
import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path

OUR_PACKAGES = ("data_ingest", "components", "serving", "pipeline")
PROJECT_ROOT = Path(__file__).resolve().parent.parent


def source_hash(*modules: str, root: Path = PROJECT_ROOT) -> str:
    """Hash of the given modules and of every module of ours that they import, in turn.

    Comments and formatting do not count: the hash is taken over the syntax tree.

    Args:
      modules: dotted names, for example `"components.trainer.run_fn"`.
      root: folder that holds our packages.

    Returns:
      16 hexadecimal digits.

    Raises:
      ModuleNotFoundError: one of `modules` is not there; its edits would go unnoticed.
    """
    for module in modules:
        if _module_file(module, root) is None:
            raise ModuleNotFoundError(f"there is no module {module} of ours", name=module)
    digest = hashlib.sha256()
    for path, tree in sorted(_closure(modules, root).items()):
        digest.update(path.relative_to(root).as_posix().encode())
        digest.update(ast.dump(tree).encode())
    return digest.hexdigest()[:16]


def _closure(modules: Iterable[str], root: Path) -> dict[Path, ast.Module]:
    """Syntax trees of the modules and of all that they import, by file."""
    found: dict[Path, ast.Module] = {}
    waiting = [_module_file(module, root) for module in modules]
    while waiting:
        path = waiting.pop()
        if path is None or path in found:
            continue
        found[path] = ast.parse(path.read_text(encoding="utf-8"))
        waiting += [_module_file(name, root) for name in _imports(found[path])]
    return found


def _imports(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _module_file(module: str, root: Path) -> Path | None:
    if module.partition(".")[0] not in OUR_PACKAGES:
        return None
    base = root.joinpath(*module.split("."))
    for path in (base.with_suffix(".py"), base / "__init__.py"):
        if path.is_file():
            return path
    return None
