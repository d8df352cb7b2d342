"""Writes archives in many dtypes and orders, and some invalid ones, for test/evaluation/npz.test.ts.

python test/support/metric_archives.py FOLDER
"""

import sys
import zipfile
from pathlib import Path

import numpy as np

PREDS = np.arange(12).reshape(2, 2, 3)
MASKS = PREDS % 2
NAMES = np.array(["bolt", "grün"])


def main(folder: Path) -> None:
    """Writes one archive per dtype with the same numbers, then the invalid ones as bad-NAME.npz."""
    integers = ("u1", "i1", "<u2", "<i2", ">i2", "<i4", ">i4", "<u4", "<i8", ">i8", "<u8")
    for dtype in (*integers, "<f2", ">f2", "<f4", ">f4", "<f8", ">f8"):
        name = dtype.replace("<", "little-").replace(">", "big-")
        np.savez(folder / f"{name}.npz", preds=PREDS.astype(dtype), masks=MASKS.astype(bool), clsname=NAMES)
    preds = PREDS.astype("f4")
    names = NAMES.astype(">U9")
    np.savez_compressed(folder / "compressed.npz", preds=preds, masks=MASKS.astype("f8"), clsname=names)
    fortran = np.asfortranarray(preds)
    np.savez(folder / "fortran.npz", preds=fortran, masks=np.asfortranarray(MASKS), clsname=NAMES)
    encoded = np.char.encode(NAMES, "utf-8")
    np.savez(folder / "channel.npz", preds=preds[:, None], masks=MASKS[..., None], clsname=encoded)
    np.savez(folder / "nameless.npz", preds=PREDS.astype("f4"), masks=MASKS)

    good = {"preds": PREDS.astype("f4"), "masks": MASKS, "clsname": NAMES}
    np.savez(folder / "bad-object.npz", **good | {"clsname": NAMES.astype(object)})
    np.savez(folder / "bad-complex.npz", **good | {"preds": PREDS.astype("c8")})
    np.savez(folder / "bad-structured.npz", **good | {"preds": np.zeros(3, dtype=[("a", "f4")])})
    np.savez(folder / "bad-shape.npz", **good | {"masks": MASKS[:, :1]})
    np.savez(folder / "bad-flat.npz", **good | {"preds": PREDS.ravel()})
    np.savez(folder / "bad-names.npz", **good | {"clsname": NAMES[:1]})
    np.savez(folder / "bad-absent.npz", preds=PREDS)
    np.savez(folder / "bad-text.npz", **good | {"preds": NAMES})
    (folder / "bad-empty.npz").write_bytes(b"")
    (folder / "bad-nothing.npz").write_bytes(b"no archive at all, but long enough to hold the end of one")
    whole = (folder / "little-f4.npz").read_bytes()
    (folder / "bad-cut.npz").write_bytes(whole[: len(whole) // 2])
    flipped = bytearray(whole)
    flipped[len(b"PK..") + 150 + 64] ^= 0xFF
    (folder / "bad-flipped.npz").write_bytes(flipped)
    with zipfile.ZipFile(folder / "bad-member.npz", "w") as archive:
        archive.writestr("preds.npy", b"\x93NUMPY\x01\x00\xff\xff short")
        archive.writestr("masks.npy", b"not an array")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
