"""What training says while it runs: lines for people, or one JSON object a line for programs."""

import json
from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """Writes events to standard output.

    Every event has a name and a sentence; the JSON form adds the values behind the sentence. Events are `stage` (state `started`,
    `finished` or `skipped`), `data` (the images found), `plan` (how long a step takes), `step`, `validation`, `saved`, `prepared` (images
    perturbed or sampled before a stage) and `written`.
    """

    as_json: bool = False
    quiet: bool = False  # of several processes only the first one speaks

    def say(self, event: str, text: str, **values: object) -> None:
        """One event; NaN values (a loss of which a batch had no sample) are left out of the JSON form."""
        if self.quiet:
            return
        if self.as_json:
            known = {key: value for key, value in values.items() if value == value}
            print(json.dumps({"event": event, **known, "text": text}), flush=True)
        else:
            print(text, flush=True)
