"""Computes the metrics of a `diad eval` run with the Python reference and scikit-learn from the run's maps.

python test/support/reference_report.py DATA RUN
"""

import json
import sys
from pathlib import Path

import numpy as np
from diad_reference.evaluation import class_metrics, read_mask, test_images
from diad_reference.metrics import overlap_mvtec


def main(data: Path, run: Path) -> None:
    """Prints {class: metrics}."""
    side = json.loads((run / "run.json").read_text())["side"]
    lines = [json.loads(line) for line in (run / "images.jsonl").read_text().splitlines()]
    scored = {line["file"]: line for line in lines}
    images = test_images(data)
    report = {}
    for name in sorted({p.class_name for p in images}):
        chosen = [p for p in images if p.class_name == name]
        rows = [scored[str(p.file.relative_to(data))] for p in chosen]
        files = [run / "maps" / f"{row['index']:06d}.f32" for row in rows]
        maps = np.stack([np.fromfile(file, "<f4").reshape(side, side) for file in files])
        masks = np.stack([read_mask(p, side) for p in chosen])
        labels = np.array([p.defect != "good" for p in chosen])
        metrics = class_metrics(labels, np.array([row["score"] for row in rows]), masks, maps)
        report[name] = {**metrics, "au_pro": overlap_mvtec(masks, maps)}
    print(json.dumps(report))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
