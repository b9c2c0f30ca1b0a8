"""From a folder of captioned photographs to preference pairs, opened with pandas."""

import io
import logging
from pathlib import Path

import pandas as pd
from PIL import Image

from raypref.core.config import load
from raypref.demo.world import write_photos
from raypref.run.config import RunConfig
from raypref.run.execute import CURATE, execute

logging.basicConfig(level=logging.INFO, format="%(message)s")

# Your own folder looks like this one: images, and captions.csv with the columns file and caption
# (or photo.txt beside each photo.jpg). Here 48 photographs of the embedded world are rendered.
photos = Path("my-photos")
write_photos(photos, 48, seed=7)
print((photos / "captions.csv").read_text().splitlines()[:3])

# Every setting has a default in the preset; `raypref curate --help all` lists all.
# On the command line: raypref curate tiny source.path=my-photos run=my-photos select.top_k=8
config = load(RunConfig, "tiny", [f"source.path={photos}", "run=my-photos", "select.top_k=8"])
run = execute(config, only=CURATE)

# A pair is a photograph (chosen) and its copy with the salient region repainted (rejected).
files = sorted(Path(run.folder, "pairs").glob("*.parquet"))
pairs = pd.concat([pd.read_parquet(file) for file in files]).sort_values("rank")
print(pairs[["prompt", "pickscore_chosen", "pickscore_rejected", "colorfulness"]])


def opened(column: str) -> list[Image.Image]:
    """The images of a column; each is a struct with the bytes of a PNG, as `datasets` has it."""
    return [Image.open(io.BytesIO(image["bytes"])) for image in pairs[column]]


# One picture: the chosen images above, the rejected ones below.
side = opened("chosen")[0].width
sheet = Image.new("RGB", (side * len(pairs), side * 2))
for row, column in enumerate(("chosen", "rejected")):
    for position, image in enumerate(opened(column)):
        sheet.paste(image, (position * side, row * side))
sheet.save(Path(run.folder, "pairs.png"))
print(f"{len(pairs)} pairs: {run.folder}/pairs.png")
