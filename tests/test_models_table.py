"""README's table of what is aligned, made of the registries."""

import ast
import tomllib
from importlib.util import find_spec
from pathlib import Path

from raypref.align.objectives.registry import OBJECTIVES
from raypref.align.online_config import RewardedConfig
from raypref.models.families.registry import FAMILIES, INPAINTING

ROOT = Path(__file__).resolve().parents[1]
PRESETS = {
    path.stem: tomllib.loads(path.read_text(encoding="utf-8")).get("base", {}).get("family", "sd15")
    for path in sorted((ROOT / "raypref" / "presets").glob("*.toml"))
}


def test_the_readme_lists_what_is_aligned() -> None:
    rewarded = [name for name, kind in OBJECTIVES.items() if issubclass(kind, RewardedConfig)]
    lines = ["| `base.family` | model | objectives | inpaints | presets |", "|---|---|---|---|---|"]
    for name, module in FAMILIES.items():
        spec = find_spec(module)
        assert spec is not None and spec.origin is not None
        docstring = ast.get_docstring(ast.parse(Path(spec.origin).read_text(encoding="utf-8")))
        model = str(docstring).partition(":")[0]
        inpaints = name in INPAINTING
        without = f"{len(OBJECTIVES) - len(rewarded)} without rewards"
        objectives = without if inpaints else f"all {len(OBJECTIVES)}"
        presets = ", ".join(f"`{preset}`" for preset, family in PRESETS.items() if family == name)
        cells = f"`{name}`", model, objectives, "yes" if inpaints else "no", presets
        lines.append(f"| {' | '.join(cells)} |")
    table = "\n".join(lines)
    assert table in (ROOT / "README.md").read_text(encoding="utf-8"), f"it should be\n{table}"
