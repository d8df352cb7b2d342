"""run.json: what every stage of a run must agree on, and which stages are done."""

import dataclasses
import json
from pathlib import Path

RECORD_FILE = "run.json"
MODEL_FILE = "model.pt"
RECIPES = ("weighted", "published")
NEW_RUN_SHARE = 0.1  # of the good images of each class, held out of a new run


@dataclasses.dataclass(frozen=True)
class RunRecord:
    """The choices of a run."""

    validation_share: float = 0.0
    split_seed: int = 0
    recipe: str = "weighted"
    stable_diffusion: str | None = None  # name of the file the run was started from
    extractor: str | None = None  # name of the file with the extractor's weights, which then are not trained
    done: dict[str, int] = dataclasses.field(default_factory=dict)  # steps of each finished stage

    def with_done(self, stage: str, steps: int, later: tuple[str, ...]) -> "RunRecord":
        """The record once a stage is finished: what was made from its results is not done any more."""
        kept = {name: count for name, count in self.done.items() if name not in later}
        return dataclasses.replace(self, done={**kept, stage: steps})


def read_record(run: Path) -> RunRecord | None:
    """The run's record; of a run without one (begun before there were records), that of a run without held-out images.

    Returns:
        None for a new run.

    Raises:
        ValueError: the file is damaged.
    """
    path = run / RECORD_FILE
    if not path.exists():
        return RunRecord() if (run / MODEL_FILE).exists() else None
    try:
        return RunRecord(**json.loads(path.read_text(encoding="utf-8")))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error


def write_record(run: Path, record: RunRecord) -> None:
    """Writes run.json, whole or not at all."""
    path = run / RECORD_FILE
    staging = path.with_suffix(".part")
    staging.write_text(json.dumps(dataclasses.asdict(record), indent=2) + "\n", encoding="utf-8")
    staging.replace(path)


def agreed(record: RunRecord, asked: dict[str, object]) -> None:
    """Compares options of this command with the run's.

    Args:
        record: of the run.
        asked: option by field; None where the option was not given.

    Raises:
        ValueError: they differ; names the option.
    """
    for field, value in asked.items():
        before = getattr(record, field)
        if value is not None and value != before:
            option = "--" + field.replace("_", "-")
            raise ValueError(
                f"This run was begun with {option} {before} and stays with it, but {value} was asked for; take another --run"
            )
