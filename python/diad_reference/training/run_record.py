"""run.json: the options that all stages of a run share, and the finished stages."""

import dataclasses
import json
from pathlib import Path

RECORD_FILE = "run.json"
MODEL_FILE = "model.pt"
RECIPES = ("weighted", "published")
NEW_RUN_SHARE = 0.1  # default share of good images per class that a new run holds out


@dataclasses.dataclass(frozen=True)
class RunRecord:
    """Options and finished stages of a run."""

    validation_share: float = 0.0
    split_seed: int = 0
    recipe: str = "weighted"
    stable_diffusion: str | None = None  # name of the checkpoint file that the run started from
    extractor: str | None = None  # name of the file with the extractor weights, which are not trained
    done: dict[str, int] = dataclasses.field(default_factory=dict)  # number of steps per finished stage

    def with_done(self, stage: str, steps: int, later: tuple[str, ...]) -> "RunRecord":
        """Returns the record with `stage` finished and the stages that depend on it unfinished."""
        kept = {name: count for name, count in self.done.items() if name not in later}
        return dataclasses.replace(self, done={**kept, stage: steps})


def read_record(run: Path) -> RunRecord | None:
    """Reads the record of a run.

    Returns:
        The record; a default record without held-out images for runs of older versions without run.json; None
        for a new run.

    Raises:
        ValueError: The file is damaged.
    """
    path = run / RECORD_FILE
    if not path.exists():
        return RunRecord() if (run / MODEL_FILE).exists() else None
    try:
        return RunRecord(**json.loads(path.read_text(encoding="utf-8")))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error


def write_record(run: Path, record: RunRecord) -> None:
    """Writes run.json atomically."""
    path = run / RECORD_FILE
    staging = path.with_suffix(".part")
    staging.write_text(json.dumps(dataclasses.asdict(record), indent=2) + "\n", encoding="utf-8")
    staging.replace(path)


def agreed(record: RunRecord, asked: dict[str, object]) -> None:
    """Checks that the options of this command match those of the run.

    Args:
        record: Record of the run.
        asked: Value of each option by field name. None: the option was not given.

    Raises:
        ValueError: A value differs. The message names the option.
    """
    for field, value in asked.items():
        before = getattr(record, field)
        if value is not None and value != before:
            option = "--" + field.replace("_", "-")
            raise ValueError(
                f"This run was started with {option} {before}, which cannot change, but received {value}; "
                "use another --run"
            )
