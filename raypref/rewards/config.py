"""The settings class of a reward: what is shown of its scores, and how its model is loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Self

from raypref.core.config import Section

if TYPE_CHECKING:
    from raypref.core.config import Resources


class RewardConfig(Section):
    """The settings of one reward, and how its scores are shown.

    A reward is one file: a subclass of this, the model that it loads, and a line in `registry.py`.
    The class variables below are no settings. A reward's last setting is `resources`.
    """

    label: ClassVar[str]  # name for people, in tables and on the page
    spelt_out: ClassVar[str] = ""  # said under a table whose column has a short label
    digits: ClassVar[int] = 2  # decimals shown
    lower_is_better: ClassVar[bool] = False
    # Whether what `load` gives is a `DifferentiableReward`: `compute` gives no gradient itself. A
    # model that writes an answer is none.
    differentiable: ClassVar[bool] = False
    scores: ClassVar[bool] = True  # False: it only embeds
    embeds: ClassVar[bool] = False  # whether what `load` gives is an `Embedder` (too)
    large: ClassVar[bool] = False  # billions of weights: never in memory beside another model

    if TYPE_CHECKING:  # no field here: a base's fields would come first in `--help`
        resources: Resources

    @property
    def runtime_env(self) -> dict[str, Any] | None:
        """Ray's description of an environment of the workers' own, if they need one."""
        return None

    def on(self, num_gpus: float) -> Self:
        """The same reward whose model is loaded onto a GPU, or with 0 onto the CPU."""
        own = self.resources.model_copy(update={"num_gpus": num_gpus})
        return self.model_copy(update={"resources": own})

    def check(self) -> None:
        """Look for the weights before any work is done.

        Raises:
            InputError: they are not on disk and cannot be fetched; names the key.
        """
        raise NotImplementedError

    def load(self) -> Any:
        """Load the model onto its device: a `Reward`, an `Embedder`, or both."""
        raise NotImplementedError
