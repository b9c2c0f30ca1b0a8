"""The table over all families of objectives: no method is left out, and rows differ as they say."""

from raypref.ablate import table
from raypref.ablate.plan import load_config, planned_rows
from raypref.align.objectives.registry import OBJECTIVES
from raypref.align.online_config import RewardedConfig


def test_every_objective_that_draws_its_own_images_has_a_row():
    drawing = {name for name, kind in OBJECTIVES.items() if issubclass(kind, RewardedConfig)}
    rows = planned_rows("families", table.read_table("families"), load_config("tiny", []))
    trained = {row.config.train["family"].objective for row in rows if row.config}
    assert trained == drawing | {"dro", "dpo", "sft"}


def test_rows_take_no_setting_of_another_objective():
    """A row's settings begin as the command's, which may be of a training of the same name."""
    found = table.read_table("families")
    for row in planned_rows("families", found, load_config("tiny", [])):
        assert row.config is not None
        own = row.config.train["family"]
        defaults = OBJECTIVES[own.objective].model_validate({"objective": own.objective})
        given = {
            key.split(".")[2]
            for key in {**found.set_, **found.copy_, **row.row.set_}
            if "." in key and key.startswith("train.")
        }
        differ = {key for key, value in own if value != getattr(defaults, key)}
        assert differ <= given | {"sample_every"}, row.row.name
