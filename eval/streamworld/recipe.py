"""The training recipe: sizes, lengths and rates of the four stages."""

from __future__ import annotations

from dataclasses import dataclass

GRIDS_PX = (16, 8, 4, 2, 1)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How the built-in model is trained. Batch sizes are per process.

    Attributes:
        vision_steps: Steps of the vision stage; the learning rate falls over the last two fifths.
        vision_batch: Images per step.
        vision_pass_fraction: Entity accuracy at which the position grid is refined.
        vision_rate: Peak learning rate.
        drill_steps: Most steps of the drill.
        drill_stop_fraction: Accuracy at which the drill ends.
        general_steps: Steps of the general stage.
        memory_steps: Steps of the memory stage.
        language_rate: Peak learning rate of drill and general stage.
        memory_rate: Peak learning rate of the memory stage.
        vision_rate_factor: The vision tower's share of `language_rate`.
        retrieval_weight: Weight of the retrieval loss.
        weight_decay: AdamW weight decay.
        save_every_s: Seconds between checkpoints.
        log_every_steps: Steps between progress lines.
    """

    vision_steps: int = 2800
    vision_batch: int = 96
    vision_pass_fraction: float = 0.9
    vision_rate: float = 2e-3
    drill_steps: int = 600
    drill_stop_fraction: float = 0.9
    general_steps: int = 4700
    memory_steps: int = 2400
    language_rate: float = 1e-3
    memory_rate: float = 5e-4
    vision_rate_factor: float = 0.5
    retrieval_weight: float = 0.3
    weight_decay: float = 0.05
    save_every_s: float = 40.0
    log_every_steps: int = 20
