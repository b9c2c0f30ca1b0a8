"""The page's text: complete, safe with strangers' captions. test_browser.py opens it."""

import base64
import dataclasses
import hashlib
import io
import json
import re
from html.parser import HTMLParser
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageDraw, ImageFilter, ImageOps

from raypref.evaluate import statistics, tables
from raypref.report.collect import prompt_gains
from raypref.report.page import render
from raypref.report.pictures import overlay, picture, strip
from raypref.report.views import (
    BeforeAfter,
    Dropped,
    DroppedFor,
    FunnelStep,
    GridRow,
    Histogram,
    Link,
    PairView,
    ReportData,
    StepCost,
    StripView,
    TrainingView,
)

MODELS = ["base", "stage2_alone", "stage1", "stage2"]
SECTIONS = ["pairs", "results", "samples", "use", "photographs", "dropped", "training"]
SECTIONS += ["costs", "configuration"]
ATTACK = """"><script>alert(1)</script><img src=x onerror='alert(2)'>{{ 7 * 7 }}"""


def made_photo(index: int) -> Image.Image:
    """A picture with a gradient and a disc, for a project without photographs beside it."""
    y, x = np.mgrid[0:96, 0:128]
    image = Image.fromarray(np.stack([x * 2, y * 2, x + y], -1).astype(np.uint8))
    ImageDraw.Draw(image).ellipse((30 + index, 20, 80 + index, 70), fill=(220, 120, 40))
    return image


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def pair(photo: Image.Image, prompt: str, rank: int, size: int) -> PairView:
    chosen = ImageOps.fit(photo.convert("RGB"), (size, size))
    mask = Image.new("L", (size, size))
    ImageDraw.Draw(mask).ellipse([size * 0.2, size * 0.25, size * 0.8, size * 0.85], fill=255)
    blurred = ImageOps.posterize(chosen.filter(ImageFilter.GaussianBlur(size / 40)), 3)
    gap = 2.5 / (1 + rank)
    return PairView(
        prompt=prompt,
        chosen=picture(png(chosen), full=f"files/{rank}.png"),
        region=picture(overlay(png(chosen), png(mask))),
        rejected=picture(png(Image.composite(blurred, chosen, mask))),
        pickscore_chosen=23.4 - 0.1 * rank,
        pickscore_rejected=23.4 - 0.1 * rank - gap,
        colorfulness=71.5 - rank,
        rank=rank,
    )


def curves(steps: int, rng: np.random.Generator) -> pd.DataFrame:
    step = np.arange(1, steps + 1)
    fall = np.exp(-step / (steps / 3))
    return pd.DataFrame(
        {
            "step": step,
            "grad_norm": 0.2 + 0.3 * rng.gamma(2.0, 0.2, steps),
            "loss": 0.55 + 0.14 * fall + 0.02 * rng.standard_normal(steps),
            "implicit_accuracy": np.clip(0.75 - 0.25 * fall + 0.1 * rng.normal(size=steps), 0, 1),
            "lr": 2.56e-6 * np.minimum(1, step / 125),
            "seconds_per_step": 1.9 + 0.05 * rng.standard_normal(steps),
            "note": "not a number",
        }
    )


def scores(rng: np.random.Generator) -> pd.DataFrame:
    at_base = {m: v for (model, m), v in tables.published("table3").items() if model == "base"}
    gains = {"base": 0.0, "stage1": 0.25, "stage2_alone": 0.02, "stage2": 0.4}
    rows = []
    for metric, level in at_base.items():
        difficulty = rng.normal(level, 1.0, 60)
        for model, gain in gains.items():
            drawn = difficulty[:, None] + gain + rng.normal(0, 0.3, (60, 3))
            rows += [
                (f"prompt {p}", p, s, model, metric, drawn[p, s])
                for p in range(60)
                for s in range(3)
            ]
    return pd.DataFrame(rows, columns=list(statistics.SCORES))


def report(photos: list[tuple[Image.Image, str]], *, size: int = 256) -> ReportData:
    """A run with every part; the first caption is the given one."""
    rng = np.random.default_rng(7)
    pairs = [pair(image, text, rank, size) for rank, (image, text) in enumerate(photos, start=1)]
    grids = [
        GridRow(
            prompt=view.prompt,
            seed=42 + place,
            images={
                model: picture(png(photos[place][0].resize((64, 64))), full=f"files/{model}.png")
                for model in MODELS[: 4 - place]
            },
        )
        for place, view in enumerate(pairs[:2])
    ]
    judged = scores(rng)
    return ReportData(
        title="Evening run",
        subtitle="preset sd15 · seed 0 · 21 November 2025",
        config_toml='seed = 0\n\n[stage2]\nbeta = 2000.0\nnote = "</pre><b>"\n',
        links=[
            Link("LoRA", "stage1/pytorch_lora_weights.safetensors (stage 1)"),
            Link("MLflow", "run 1f", "https://host/#/runs/1f"),
        ],
        use="import diffusers",
        facts=[("raypref", "0.1.0"), ("git commit", "3f2a91c"), ("torch", "2.11.0")],
        funnel=[
            FunnelStep(name="photographs found", remaining=25_096),
            FunnelStep(
                name="usable",
                remaining=25_007,
                dropped={"cannot_decode": 61, "too_small": 20, "no_caption": 8},
            ),
            FunnelStep(
                name="above the mean colorfulness",
                remaining=10_475,
                dropped={"low_colorfulness": 14_532},
            ),
            FunnelStep(
                name="visibly degraded (gap over 0.02)",
                remaining=4_041,
                dropped={"negligible_degradation": 6_434},
            ),
            FunnelStep(name="best by PickScore", remaining=512, dropped={"beyond_top_k": 3_529}),
        ],
        histograms=[Histogram("Colorfulness", "photographs", rng.normal(50, 9, 900), 48.25)],
        dropped=[
            DroppedFor(
                reason="too_small",
                count=20,
                keep="images.min_side sets the limit.",
                shown=[Dropped("<b>.png", "", "12 x 9 px; at least 64 are needed", None)],
            )
        ],
        pairs=pairs,
        training=[
            TrainingView(
                name="Stage 1 (Diffusion-DRO)",
                metrics=curves(1600, rng),
                strips=[StripView(step=50, picture=strip(png(made_photo(1)), full="files/a.png"))],
            ),
            TrainingView(name="Stage 2 (Diffusion-DPO)", metrics=curves(30, rng)),
        ],
        grids=grids,
        medians=[BeforeAfter(photos[0][1], pairs[0].rejected, pairs[0].chosen, "PickScore +0.4")],
        table=statistics.summarise(judged, resamples=200),
        final="stage2",
        labels={"stage2": "stage 1 + stage 2"},
        prompt_gains=prompt_gains(judged, model="stage2", base="base"),
        published=tables.published("table3"),
        costs=[
            StepCost("photos", 5_580, 25_096, "4.5 rows/s"),
            StepCost("pairs", 9_500, 1_330, "0.14 rows/s"),
            StepCost("stage1", 3_040, 1_600, "0.53 steps/s", 0.875),
            StepCost("stage2", 1_900, 1_000, "0.53 steps/s"),
        ],
    )


class Page(HTMLParser):
    """What the tests ask of the page; fails on tags that are closed wrongly."""

    VOID = frozenset({"meta", "img", "br", "link", "input"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            self.scripts.append((dict(self.tags[-1][1]), data))
        elif self.open and self.open[-1] != "style":
            self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]

    def ids(self) -> list[str]:
        return [str(a["id"]) for _, a in self.tags if "id" in a]


@pytest.fixture(scope="module")
def made() -> ReportData:
    texts = [ATTACK, "a red disc over a gradient", "the same disc, moved"]
    return report([(made_photo(5 * i), text) for i, text in enumerate(texts)])


@pytest.fixture(scope="module")
def page_text(made: ReportData) -> str:
    return render(made)


@pytest.fixture(scope="module")
def page(page_text: str) -> Page:
    return Page(page_text)


def test_every_section_is_there_and_reachable(page: Page) -> None:
    assert [a["id"] for a in page.all("section")] == SECTIONS
    targets = [str(a["href"]) for a in page.all("a") if "href" in a]
    inner = {target.removeprefix("#") for target in targets if target.startswith("#")}
    assert inner >= set(SECTIONS) and "dropped-too_small" in page.ids()
    assert "stage1/pytorch_lora_weights.safetensors (stage 1)" in page.text
    assert len(page.ids()) == len(set(page.ids()))
    assert page.text.count("not run") == 0


def test_headings_go_down_one_level_at_a_time(page: Page) -> None:
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(b - a <= 1 for a, b in pairwise(levels))


def test_nothing_is_loaded_from_outside(page: Page, page_text: str) -> None:
    for tag, attributes in page.tags:
        assert tag not in {"iframe", "object", "embed", "base", "form"}
        assert tag != "link" or attributes == {"rel": "icon", "href": "data:,"}
        for name in ("src", "href", "xlink:href", "action", "srcset", "poster"):
            value = attributes.get(name) or "#"
            # Links are not loaded; but for a web address those of the page stay in its folder.
            inside = ("#", "data:", "https://host/", "files/") if tag == "a" else ("#", "data:")
            assert value.startswith(inside), (tag, name, value[:80])
    assert set(re.findall(r"url\((.)", page_text)) <= {"#"}
    assert "@import" not in page_text
    assert "default-src 'none'" in page_text


def test_only_the_own_script_may_run(page: Page, page_text: str) -> None:
    (about, data), (_, script) = page.scripts
    assert about["type"] == "application/json" and json.loads(data)["pairs"]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in page_text
    assert "innerHTML" not in script and "eval(" not in script and "fetch(" not in script


def test_captions_are_text_and_nothing_else(page: Page, page_text: str) -> None:
    assert page_text.count("<script") == 2 and "onerror='" not in page_text
    assert page.text.count(ATTACK) == 3  # the median's, the grid's, the choice of its prompt
    assert f"base: {ATTACK}" in [a["alt"] for a in page.all("img")]
    (_, data), _ = page.scripts
    assert "<" not in data and json.loads(data)["pairs"][0][0] == ATTACK
    assert "</pre><b>" in page.text and "<b>.png" in page.text
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)


def test_counts_scores_and_costs_are_shown(page: Page) -> None:
    text = " ".join(page.text.split())
    assert "25,096 photographs = 512 pairs + 24,584 dropped for the reasons below." in text
    for shown in ("6,434 negligible degradation", "61 cannot decode", "kept above 48.25", "88%"):
        assert shown in text
    assert "5 h 34 min" in text  # 20,020 s
    assert "paper 21.04" in text and "stage 1 + stage 2" in text
    assert "not made" in text  # the second grid row has no image of the last model


def test_lost_rows_are_not_hidden(made: ReportData) -> None:
    funnel = [*made.funnel[:-1], FunnelStep(name="best", remaining=500)]
    text = Page(render(dataclasses.replace(made, funnel=funnel))).text
    assert "and 3,541 unaccounted for" in " ".join(text.split())


def test_images_are_whole_lazy_and_described(page: Page) -> None:
    images = [a for a in page.all("img") if "data-model" in a]
    assert len(images) == 1 + 4 + 3 + 2
    for attributes in images:
        assert attributes["loading"] == "lazy" and attributes["decoding"] == "async"
        assert attributes["alt"]
        encoded = str(attributes["src"]).split(",")[1]
        with Image.open(io.BytesIO(base64.b64decode(encoded))) as image:
            image.load()
            assert [str(side) for side in image.size] == [attributes["width"], attributes["height"]]
        assert attributes["class"] == ("pixelated" if image.width <= 128 else "smooth")


def test_large_images_are_made_small_and_small_ones_kept() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (1024, 1024, 3), dtype=np.uint8)
    heavy, light = png(Image.fromarray(noise)), png(Image.fromarray(noise[:64, :64]))
    small = picture(heavy, full="a.png")
    assert (small.width, small.height, small.pixelated) == (192, 192, False)
    assert small.small.startswith("data:image/jpeg") and len(small.small) < len(heavy) / 20
    kept = picture(light)
    assert (kept.width, kept.pixelated) == (64, True)
    assert base64.b64decode(kept.small.split(",")[1]) == light
    wide = strip(png(Image.fromarray(noise[:256])), full="")
    assert (wide.width, wide.height, wide.pixelated) == (512, 128, False)
    assert strip(png(Image.fromarray(noise[:64])), full="").pixelated


def test_the_overlay_tints_the_region_and_nothing_else() -> None:
    photo, mask = Image.new("RGB", (64, 64), (10, 200, 30)), Image.new("L", (64, 64))
    mask.paste(255, (0, 0, 32, 64))
    image = Image.open(io.BytesIO(overlay(png(photo), png(mask))))
    assert image.getpixel((60, 5)) == (10, 200, 30)
    red, green, _ = image.getpixel((5, 5))
    assert red > 150 > green


def test_an_unknown_image_format_is_an_error() -> None:
    with pytest.raises(ValueError, match="not PNG, JPEG, WEBP"):
        picture(b"<svg onload='alert(1)'/>")


def test_less_is_better_where_the_table_says_so(made: ReportData) -> None:
    assert made.table is not None
    distance = made.table[made.table["metric"] == "pickscore"].assign(metric="cmmd")
    text = render(dataclasses.replace(made, table=distance, published={}, prompt_gains=[]))
    assert '<span class="worse">▲ +' in text and "lower is better" in text


def test_a_gain_without_an_interval_claims_nothing(made: ReportData) -> None:
    assert made.table is not None
    bare = made.table.assign(gain_low=np.nan, gain_high=np.nan)
    text = render(dataclasses.replace(made, table=bare, published={}, prompt_gains=[]))
    assert '<span class="flat"> +' in text
    assert not re.findall(r'<span class="\w+">[▲▼≈]', text)


def test_what_a_run_has_not_made_is_left_out() -> None:
    page = Page(render(ReportData(title="t", subtitle="s", config_toml="", to_come=["pairs"])))
    assert [a["id"] for a in page.all("section")] == ["configuration"]
    assert "There are no pairs yet." in page.text and "Still to come: pairs." in page.text


def test_an_evaluation_without_a_base_has_no_gains(made: ReportData) -> None:
    assert made.table is not None
    alone = made.table[made.table["model"] == "stage2"].assign(gain=np.nan)
    page = Page(render(dataclasses.replace(made, table=alone)))
    assert "21." in page.text and "Gain over the base" not in page.text
    assert not {"▲", "▼", "≈"} & set(page.text)


def test_the_same_data_gives_the_same_page(made: ReportData, page_text: str) -> None:
    assert render(made) == page_text
