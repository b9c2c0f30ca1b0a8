"""Inputs as people reported them for other tools: each photograph is used with its own caption.

Every case says what becomes of each file. A key of the result is the hash of the image's bytes and
caption, so a photograph under another one's caption fails, and so does another file's picture.
"""

from __future__ import annotations

import io
import json
import os
import unicodedata
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from corpus import encode, scene
from PIL import ImageCms
from test_folder import files
from test_images import srgb_profile
from test_photos import measured
from test_shards import shard

from raypref.core.rows import content_key
from raypref.images.decode import FORMATS, ImageConfig
from raypref.sources.found import findings
from raypref.sources.index import SourceConfig, digest, entries

PHOTOS = [encode(scene(number), "JPEG") for number in range(12)]
CAPTIONS = [f"scene {number}, with a comma" for number in range(12)]
MASK = encode(scene(50).convert("L"), "PNG")
AVIF = "AVIF" in FORMATS


class Right(NamedTuple):
    """What a case must give."""

    used: dict[str, bytes]  # caption -> the image's bytes
    dropped: dict[str, int]  # reason -> entries
    said: str  # in a line before any model runs
    settings: dict[str, object]


def right(count: int, dropped: dict[str, int] | None = None, said: str = "", **more: object):
    """The first photographs are used, each with its caption."""
    used = dict(zip(CAPTIONS[:count], PHOTOS[:count], strict=True))
    return Right(used, dropped or {}, said, more)


def pairs(count: int, start: int = 0) -> list[tuple[str, bytes, str]]:
    """(stem, bytes, caption) of some photographs."""
    numbers = range(start, start + count)
    return [(f"photo_{n:03d}", PHOTOS[n], CAPTIONS[n]) for n in numbers]


def beside(folder: str, some: list[tuple[str, bytes, str]], end: str = ".txt") -> dict:
    """Photographs with a file of text each."""
    found: dict[str, bytes | str] = {}
    for stem, data, caption in some:
        found |= {f"{folder}{stem}.jpg": data, f"{folder}{stem}{end}": caption}
    return found


def table(some: list[tuple[str, bytes, str]], head: str = "file,caption", form: str = "NFC") -> str:
    lines = [f'{unicodedata.normalize(form, stem)}.jpg,"{caption}"\n' for stem, _, caption in some]
    return f"{head}\n" + "".join(lines)


def masks_in_shard(root: Path) -> Right:
    members: list[tuple[str, bytes]] = []
    for stem, data, caption in pairs(6):
        members += [(f"{stem}.jpg", data), (f"{stem}.mask.png", MASK), (f"{stem}.seg.png", MASK)]
        members.append((f"{stem}.txt", caption.encode()))
    shard(root / "000.tar", members)
    return right(6, {"not_a_photograph": 12}, "12 images are not photographs")


def deleted_photographs(root: Path) -> Right:
    files(root, beside("", pairs(8)) | beside(".Trash-1000/files/", pairs(4, 8)))
    thumbs = {".ipynb_checkpoints/photo_000-checkpoint.jpg": PHOTOS[0], "desktop.ini": "[x]"}
    thumbs |= {"@eaDir/photo_000.jpg/SYNOPHOTO_THUMB_XL.jpg": PHOTOS[0], "Thumbs.db": bytes(99)}
    files(root, thumbs | dict.fromkeys(["._photo_000.jpg", "._photo_000.txt"], b"\0\5\x16\7\0\2"))
    return right(8, said="4 in .Trash-1000")


def own_results(root: Path) -> Right:
    files(root, {"captions.csv": table(pairs(8))} | {f"{s}.jpg": d for s, d, _ in pairs(8)})
    before = digest(SourceConfig(path=str(root)))
    run = {"runs/mine/run.json": "{}", "runs/mine/pairs/started.json": "{}", "runs/mlflow.db": ""}
    files(root, run | {"runs/mine/export/folders/real/1.png": PHOTOS[9]})
    assert digest(SourceConfig(path=str(root))) == before  # the same command resumes
    return right(8)


def kohya(root: Path) -> Right:
    files(root, beside("img/10_street photo/", pairs(4)))
    files(root, beside("img/5_meal/", pairs(8, 4), ".caption"))
    return right(12)


def unsorted(root: Path, mixed: bool) -> Right:
    members, late = [], []
    for number, (stem, data, caption) in enumerate(pairs(12)):
        members.append((f"set/{stem}.jpg", data))
        where = members if mixed and number % 2 else late
        where.append((f"set/{stem}.txt", caption.encode()))
    shard(root / "photos-000.tar", members + late)
    return right(12)


def nested_tables(root: Path) -> Right:
    for album, some in (("spring", pairs(4)), ("summer", pairs(4, 4))):
        files(root / album, {f"{stem}.jpg": data for stem, data, _ in some})
        files(root / album, {"captions.csv": table(some)})
    files(root, beside("autumn/", pairs(4, 8)))
    return right(12)


def decomposed_names(root: Path) -> Right:
    names = ["caf\xe9", "M\xfcller", "\u0160koda", "ni\xf1o", *"abcd"]
    some = [(name, data, text) for name, (_, data, text) in zip(names, pairs(8), strict=True)]
    files(root, {f"{unicodedata.normalize('NFD', stem)}.jpg": data for stem, data, _ in some})
    files(root, {"captions.csv": table(some)})
    return right(8)


def lists_of_captions(root: Path) -> Right:
    texts = [[f"{caption} ({n})" for n in range(5)] for caption in CAPTIONS]
    images = [{"bytes": data, "path": "x.jpg"} for data in PHOTOS]
    pq.write_table(pa.table({"image": images, "caption": texts}), root / "train.parquet")
    used = {text: PHOTOS[n] for n, some in enumerate(texts) for text in some}
    return Right(used, {}, "", {})


def parquet(some: list[tuple[str, bytes, str]]) -> bytes:
    buffer = io.BytesIO()
    images = [{"bytes": data, "path": f"{stem}.jpg"} for stem, data, _ in some]
    pq.write_table(pa.table({"image": images, "caption": [text for *_, text in some]}), buffer)
    return buffer.getvalue()


def hub_snapshot(root: Path, kind: str) -> Right:
    content: dict[str, bytes | str] = {f"{stem}.jpg": data for stem, data, _ in pairs(12)}
    content["captions.csv"] = table(pairs(12))
    if kind == "parquet":
        content = {"data/train-00000-of-00001.parquet": parquet(pairs(12))}
    if kind == "tar":
        members = [(name, as_bytes(data)) for name, data in beside("", pairs(12)).items()]
        shard(root / "whole.tar", members)
        content = {"data/000.tar": (root / "whole.tar").read_bytes()}
    top = root / "datasets--someone--street-photos"
    snapshot = top / "snapshots" / "0123abcd"
    for number, (name, data) in enumerate((content | {"README.md": "# photos"}).items()):
        blob = top / "blobs" / f"{number:064x}"
        files(top, {f"blobs/{blob.name}": data})
        (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
        (snapshot / name).symlink_to(os.path.relpath(blob, (snapshot / name).parent))
    return right(12, path=str(snapshot))


def as_bytes(data: bytes | str) -> bytes:
    return data if isinstance(data, bytes) else data.encode()


def one_bad_parquet(root: Path, kind: str) -> Right:
    whole = parquet(pairs(4, 8))
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 9\n"
    bad = {"lfs": pointer, "empty": b"", "cut": whole[: len(whole) // 2]}[kind]
    files(
        root, {"0.parquet": parquet(pairs(4)), "1.parquet": bad, "2.parquet": parquet(pairs(8)[4:])}
    )
    return right(8, {"unreadable_file": 1}, "1 of 9 entries cannot be used: 1 unreadable_file")


def imagefolder(root: Path, kind: str) -> Right:
    for split, some in (("train", pairs(9)), ("test", pairs(3, 9))):
        lines = [json.dumps({"file_name": f"{stem}.jpg", "text": text}) for stem, _, text in some]
        text = table(some, "file_name,text") if kind == "csv" else "\n".join(lines)
        files(root / split, {f"{s}.jpg": d for s, d, _ in some} | {f"metadata.{kind}": text})
    return right(12)


def image_key(root: Path, alone: bool) -> Right:
    lines = [json.dumps({"caption": c, "image": f"images/{s}.jpg"}) for s, _, c in pairs(8)]
    files(root, {f"images/{stem}.jpg": data for stem, data, _ in pairs(8)})
    files(root, {"metadata1000.jsonl": "\n".join(lines)})
    return right(8, path=str(root / "metadata1000.jsonl" if alone else root))


def img2dataset(root: Path) -> Right:
    files(root, beside("00000/", pairs(9)) | {"00000/empty.jpg": PHOTOS[9], "00000/empty.txt": ""})
    files(root, {"00000/empty.json": json.dumps({"url": "u", "caption": ""})})
    records = {"url": ["u"] * 12, "caption": CAPTIONS, "key": CAPTIONS, "status": ["success"] * 12}
    pq.write_table(pa.table(records), root / "00000.parquet")
    return right(9, {"no_caption": 1})


def paths_in_parquet(root: Path) -> Right:
    files(root, {f"images/{stem}.jpg": data for stem, data, _ in pairs(8)})
    rows = {"image": [f"images/{s}.jpg" for s, *_ in pairs(8)], "text": CAPTIONS[:8]}
    pq.write_table(pa.table(rows), root / "train.parquet")
    return right(8)


def telephones(root: Path) -> Right:
    heic = b"\0\0\0\x18ftypheic" + bytes(4) + b"mif1heic" + bytes(400)
    used = dict(zip(CAPTIONS[:4], PHOTOS[:4], strict=True))
    files(root, beside("", pairs(4)))
    for number in range(4, 8):
        data = encode(scene(number), "AVIF", quality=85)
        used |= {CAPTIONS[number]: data} if AVIF else {}
        files(root, {f"{number}.avif": data, f"{number}.txt": CAPTIONS[number]})
    for name in ("IMG_8.HEIC", "IMG_9.HEIC", "IMG_10.jpg", "IMG_11.jpg"):
        files(root, {name: heic, f"{name.partition('.')[0]}.txt": "in a telephone"})
    reason = "unreadable" if "HEIF" in FORMATS else "unsupported_format"
    return Right(used, {reason: 4} if AVIF else {"unsupported_format": 8}, "", {})


def foreign_folder(root: Path) -> Right:
    files(root, beside("", pairs(8)) | {"lost+found/x.jpg": PHOTOS[9]})
    (root / "lost+found").chmod(0)  # root reads it all the same
    return right(8)


def absolute_index(root: Path, allowed: bool) -> Right:
    pool = files(root / "pool", {f"{stem}.jpg": data for stem, data, _ in pairs(6)})
    lines = [json.dumps({"image_path": f"{pool}/{s}.jpg", "caption": c}) for s, _, c in pairs(6)]
    files(root / "lists", {"train.jsonl": "\n".join(lines)})
    where = {"path": str(root / "lists"), "layout": "jsonl"}
    if allowed:
        return right(6, roots=[str(pool)], **where)
    return right(0, {"outside_root": 6}, **where)


def double_suffix(root: Path) -> Right:
    files(root, beside("", pairs(5), ".jpg.txt"))
    texts = [(stem, data, json.dumps({"caption": text})) for stem, data, text in pairs(3, 5)]
    files(root, beside("", texts, ".jpg.json"))
    return right(8)


CASES: dict[str, Callable[[Path], Right]] = {
    "01 masks in a shard": masks_in_shard,
    "02 deleted photographs": deleted_photographs,
    "04 run inside the source": own_results,
    "06 kohya's .caption": kohya,
    "07 captions last in the tar": lambda root: unsorted(root, mixed=False),
    "07 half of them last": lambda root: unsorted(root, mixed=True),
    "09 a table per album": nested_tables,
    "10 decomposed names": decomposed_names,
    "16 lists of captions": lists_of_captions,
    "18 hub cache, photos": lambda root: hub_snapshot(root, "photos"),
    "18 hub cache, parquet": lambda root: hub_snapshot(root, "parquet"),
    "18 hub cache, tar": lambda root: hub_snapshot(root, "tar"),
    "19 git lfs pointer": lambda root: one_bad_parquet(root, "lfs"),
    "19 empty parquet": lambda root: one_bad_parquet(root, "empty"),
    "19 cut parquet": lambda root: one_bad_parquet(root, "cut"),
    "20 imagefolder jsonl": lambda root: imagefolder(root, "jsonl"),
    "20 imagefolder csv": lambda root: imagefolder(root, "csv"),
    "21 image key": lambda root: image_key(root, alone=False),
    "21 image key, index alone": lambda root: image_key(root, alone=True),
    "22 img2dataset": img2dataset,
    "23 paths in parquet": paths_in_parquet,
    "24 telephones": telephones,
    "30 lost+found": foreign_folder,
    "31 absolute paths": lambda root: absolute_index(root, allowed=False),
    "31 absolute paths, allowed": lambda root: absolute_index(root, allowed=True),
    "33 photo.jpg.txt": double_suffix,
}


@pytest.mark.parametrize("case", CASES)
def test_every_photograph_is_used_with_its_own_caption(case: str, tmp_path: Path) -> None:
    expected = CASES[case](tmp_path)
    settings = {"path": str(tmp_path)} | expected.settings
    root = Path(str(settings.pop("path")))
    rows = measured(root, images=ImageConfig(size=32), **settings).values()
    ends = Counter(row.get("reject_reason") or "used" for row in rows)
    assert ends == Counter(expected.dropped) + Counter(used=len(expected.used))
    keys = [row["key"] for row in rows if not row.get("reject_reason")]
    wanted = {content_key(data, caption): caption for caption, data in expected.used.items()}
    assert sorted(keys) == sorted(wanted)
    source = SourceConfig(path=str(root), **settings)
    said = list(findings(entries(source), source.store()))
    assert any(expected.said in line for line in said) if expected.said else len(said) <= 1


def test_25_a_wide_gamut_loses_no_colour_when_profiles_are_converted(tmp_path: Path) -> None:
    """The same photographs in sRGB and in a space with other primaries, as a viewer shows alike."""
    profile = srgb_profile().replace(b"gXYZ", b"????").replace(b"bXYZ", b"gXYZ")
    profile = profile.replace(b"????", b"bXYZ")
    wide = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    srgb = ImageCms.createProfile("sRGB")
    for number in range(4):
        image = scene(number)
        other = ImageCms.profileToProfile(image, srgb, wide)
        files(tmp_path, {f"{number}_srgb.png": encode(image, "PNG")})
        files(tmp_path, {f"{number}_wide.png": encode(other, "PNG", icc_profile=profile)})
        for kind in ("srgb", "wide"):
            files(tmp_path, {f"{number}_{kind}.txt": CAPTIONS[number]})

    def colors(profiles: str) -> np.ndarray:
        rows = measured(tmp_path, images=ImageConfig(size=64, profiles=profiles))
        kinds = ("srgb", "wide")
        return np.array([[rows[f"{n}_{k}.png"]["colorfulness"] for n in range(4)] for k in kinds])

    ignored, converted = colors("ignore"), colors("convert")
    np.testing.assert_array_equal(converted[0], ignored[0])
    np.testing.assert_allclose(converted[1], converted[0], rtol=0.01)
    assert (abs(ignored[1] / ignored[0] - 1) > 0.02).all()
