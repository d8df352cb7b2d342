"""Writes the seed corpora of the fuzzers: `python cpp/fuzz/make_seeds.py BUNDLE MODULES OUT`.

BUNDLE is the folder of a bundle, MODULES a folder of small TorchScript files. Each fuzzer gets a
subfolder of OUT.
"""

import hashlib
import json
import sys
import zipfile
from pathlib import Path

# Same order as in archive_fuzz.cc.
RECORDS = ["data.pkl", "constants.pkl", "code/__torch__.py", "data/0", "data/1", "constants/0", "model.json"]
LONGEST = (1 << 24) - 1


def records_of(path: Path) -> dict[str, bytes]:
    """Returns the records of a zip by their names below its top folder; empty if the file is not a zip."""
    if not zipfile.is_zipfile(path):
        return {}
    with zipfile.ZipFile(path) as archive:
        return {entry.split("/", 1)[1]: archive.read(entry) for entry in archive.namelist()}


def main() -> None:
    """Writes the seeds."""
    bundle, modules, out = (Path(argument) for argument in sys.argv[1:4])

    def write(fuzzer: str, name: str, content: bytes) -> None:
        folder = out / fuzzer
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)

    manifest = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))
    write("manifest", "demo.json", json.dumps(manifest).encode())
    stub = {"size": 4, "sha256": hashlib.sha256(b"stub").hexdigest()}
    files = dict.fromkeys(["encoder.pt", "denoiser.pt", "decoder.pt", "extractor.pt", "golden/000.png"], stub)
    write("bundle", "stub.json", json.dumps({**manifest, "files": files}).encode())
    write("frame", "ramp", bytes(range(64)))
    for path in sorted([*bundle.glob("*.pt"), *modules.glob("*.pt")]):
        records = records_of(path)
        for name in ("data.pkl", "constants.pkl"):
            if name in records:
                write("pickle", f"{path.stem}-{name}", records[name])
        if path.parent == modules:
            parts = [
                (place, records[name])
                for place, name in enumerate(RECORDS)
                if name in records and len(records[name]) <= LONGEST
            ]
            write(
                "archive",
                path.stem,
                b"".join(bytes([place]) + len(part).to_bytes(3, "little") + part for place, part in parts),
            )


if __name__ == "__main__":
    main()
