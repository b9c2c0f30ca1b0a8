"""The alignment of one run: where its trainings start, what each makes, what they wait for."""

from __future__ import annotations

from functools import cached_property

from raypref.align import trainings
from raypref.align.stage import StageConfig, StageJob
from raypref.config import results_of
from raypref.diffusion import lora_files, parts
from raypref.diffusion.backbone import BackboneConfig
from raypref.diffusion.lora_config import LoraConfig
from raypref.ledger import Ledger, Place, placed


class Alignment:
    """One run's trainings: their jobs and ledgers.

    Args:
        stages: settings by training, in order, of `trainings.settle`.
        base: the model that is aligned.
        lora: shape of the adapter.
        cache: the encoded pairs.
        place: where the run's ledgers lie.
        seed: of the trainings.
    """

    def __init__(
        self,
        stages: dict[str, StageConfig],
        *,
        base: BackboneConfig,
        lora: LoraConfig,
        cache: Ledger,
        place: Place,
        seed: int,
    ) -> None:
        self.stages = stages
        self.base = base
        self.lora = lora
        self.cache = cache
        self.place = place
        self.seed = seed
        self.final = trainings.final(stages)  # whose LoRA the run is about
        self.imports = trainings.imports(stages)

    @cached_property
    def starts(self) -> dict[str, Ledger]:
        """LoRA weights from elsewhere that trainings start from, by their name in the table."""
        return {
            name: placed(self.place, name, results_of({"start": lora_files.identity(ref, key=key)}))
            for name, (ref, key) in self.imports.items()
        }

    @cached_property
    def jobs(self) -> dict[str, StageJob]:
        """What to train, by name, in order."""
        starts = {name: ledger.path for name, ledger in self.trained.items()}
        starts |= {ref: self.starts[name].path for name, (ref, _) in self.imports.items()}
        return {
            name: StageJob(
                name=name,
                base=self.base,
                lora=self.lora,
                stage=stage,
                cache=self.cache,
                folder=self.trained[name].path,
                start=starts.get(stage.start),  # None: the base
                # One name for both: the same samples in the same order, so that "stage 2 alone"
                # differs from "stage 2" by its start only.
                draws=name.removesuffix("_alone"),
                seed=self.seed,
            )
            for name, stage in self.stages.items()
        }

    @cached_property
    def trained(self) -> dict[str, Ledger]:
        """The ledgers of the trainings."""
        ledgers: dict[str, Ledger] = {}
        starts = {ref: self.starts[name] for name, (ref, _) in self.imports.items()}
        for name, stage in self.stages.items():
            settings = {
                "cache": self.cache.fingerprint,
                name: stage,
                "lora": self.lora,
                "seed": self.seed,
                **{n: ledger.fingerprint for n, ledger in ledgers.items() if n == stage.start},
                **{n: own.fingerprint for n, own in starts.items() if n == stage.start},
            }
            ledgers[name] = placed(self.place, name, results_of(settings))
        return ledgers

    @property
    def shown(self) -> dict[str, Ledger]:
        """All that is compared with the base, by name in the tables."""
        trained = {trainings.shown_as(n, self.stages): self.trained[n] for n in self.stages}
        return {**self.starts, **trained}

    def check_starts(self) -> None:
        """Raise InputError where weights to start from are missing or do not fit the adapter."""
        for ref, key in self.imports.values():
            parts.check_lora(self.base, self.lora, ref, key=key)

    def bring_in_starts(self) -> None:
        """Write the weights to start from into the run, in diffusers layout."""
        component = parts.component_of(self.base)
        for name, (ref, key) in self.imports.items():
            ledger = self.starts[name]
            ledger.begin()
            lora_files.bring_in(ref, key=key, component=component, folder=ledger.path)
            ledger.commit(expected=0, counts={})
