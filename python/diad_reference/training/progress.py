"""Progress output of training: text lines, or one JSON object per line."""

import json
from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """Writes events to standard output.

    Each event has a name and a text. The JSON form adds the values in the text. Events are `stage` (state
    `started`, `finished` or `skipped`), `data` (number of images), `plan` (duration of a step), `step`,
    `validation`, `saved`, `prepared` (images perturbed or sampled before a stage) and `written`.
    """

    as_json: bool = False
    quiet: bool = False  # set in all processes except the first

    def say(self, event: str, text: str, **values: object) -> None:
        """Writes one event. The JSON form omits NaN values (losses without samples in the batch)."""
        if self.quiet:
            return
        if self.as_json:
            known = {key: value for key, value in values.items() if value == value}
            print(json.dumps({"event": event, **known, "text": text}), flush=True)
        else:
            print(text, flush=True)
