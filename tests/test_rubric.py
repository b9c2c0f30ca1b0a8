"""The rubric of painted holes: requests that tell no model, answers of every kind read back."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from raypref.cli import console
from raypref.core.config import InputError, load, to_toml
from raypref.core.ledger import Ledger
from raypref.evaluate import labels
from raypref.evaluate.rubric import PARTS, ReadRubric, parse_marks, read_answers, rubric
from raypref.images.decode import encode_png
from raypref.run.config import RunConfig

PROMPTS = ["a red ball", "two dogs"]
FULL = """```json
{"Aesthetic Quality": {"score": 35, "comment": "1 of 2"}, "Structural Accuracy": {"score": 25,
"comment": "seam"}, "Semantic Alignment": {"score": 28, "comment": "ok"},
"Overall Score": 88, "Summary": "Good, 9 of 10."}
```"""
SHORT = "Aesthetic Quality: 30\nStructural Accuracy: 20\nSemantic Alignment: 10"


def picture(value: int, mode: str = "RGB") -> bytes:
    image = Image.fromarray(np.full((8, 8, 3), value, np.uint8))
    return encode_png(image.convert(mode))


def filled(path: Path, rows: list[dict], dropped: dict | None = None) -> None:
    ledger = Ledger(str(path), {})
    ledger.begin()
    sound = [{**row, "id": f"{path.name}-{i}", "reject_reason": None} for i, row in enumerate(rows)]
    if dropped is not None:
        sound.append({**dropped, "id": "dropped", "reject_reason": "unreadable"})
    ledger.write_part(pa.Table.from_pylist(sound))
    ledger.commit(expected=len(sound), counts={"ok": len(sound)})


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A finished evaluation of two holes and a dropped one: base and LoRA share one image."""
    folder = tmp_path / "my-run"
    at = folder / "evaluation"
    holes = [
        {"prompt_id": n, "prompt": text, "photograph": picture(10 + n), "mask": picture(255, "L")}
        for n, text in enumerate(PROMPTS)
    ]
    gone = {"prompt_id": 2, "prompt": "gone", "photograph": None, "mask": None}
    filled(at / "photographs", holes, gone)
    for model, values in {"base": (100, 120), "stage2_alone": (100, 130)}.items():
        images = [
            {"prompt_id": n, "prompt": text, "image": picture(value), "raw": picture(0)}
            for n, (text, value) in enumerate(zip(PROMPTS, values, strict=True))
        ]
        filled(at / "images" / model, images)
    (folder / "config.toml").write_text(to_toml(load(RunConfig, "tiny")))
    return folder


def requests_of(run: Path) -> list[dict]:
    text = (run / "evaluation" / "rubric" / "requests.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def test_requests_hold_what_is_judged_and_tell_no_model(run: Path, capsys) -> None:
    assert console(["rubric", str(run)]) == 0
    said = capsys.readouterr().out
    assert said.startswith("3 requests (3 to be asked): ")
    found = requests_of(run)
    assert [each["id"] for each in found] == sorted(each["id"] for each in found)
    assert len(found) == 3, "one image of both models is asked about once"
    levels = set()
    for each in found:
        own = {name: run / "evaluation" / "rubric" / each[name] for name in ("photograph", "mask")}
        number = PROMPTS.index(each["prompt"])
        assert own["photograph"].read_bytes() == picture(10 + number)
        assert own["mask"].read_bytes() == picture(255, "L")
        result = Image.open(run / "evaluation" / "rubric" / each["result"])
        levels.add(result.getpixel((0, 0))[0])
        assert f"Prompt: {each['prompt']}\n" in each["question"]
        assert "white region is the area to be inpainted" in each["question"]
        assert all(f"{name} (0-{most} pts)" in each["question"] for name, most in PARTS.items())
        assert not re.search(r"\bbase\b|stage2", json.dumps(each))
    assert levels == {100, 120, 130}, "what is judged, and not the raw output"


def test_answers_come_back_to_their_images_and_the_rest_is_asked_again(
    run: Path, tmp_path: Path, capsys
) -> None:
    console(["rubric", str(run)])
    first, second, third = requests_of(run)
    answers = tmp_path / "answers.jsonl"
    lines = [
        {"id": first["id"], "answer": "Sorry."},
        {"id": first["id"], "answer": FULL},
        {"id": second["id"], "answer": "I cannot judge this image."},
        {"id": "of another run", "answer": FULL},
    ]
    answers.write_text("\n".join(json.dumps(line) for line in lines) + "\n\n")
    capsys.readouterr()
    assert console(["rubric", str(run), "--answers", str(answers)]) == 0
    said = capsys.readouterr().out
    assert said.startswith("2 requests (1 answered, 1 to be asked, 1 without a score): ")
    assert [each["id"] for each in requests_of(run)] == [second["id"], third["id"]]
    images = run / "evaluation" / "rubric"
    rows = [
        {"image": (images / each["result"]).read_bytes(), "prompt": each["prompt"]}
        for each in (first, second, third)
    ]
    rows.append({**rows[0], "prompt": "another prompt"})
    stage = rubric(str(answers))["rubric"].stage
    assert isinstance(stage, ReadRubric)
    stage(rows)
    assert [rows[0][name] for name in stage.writes.names] == [88, 35, 25, 28]
    reasons = [row.get("reject_reason") for row in rows]
    assert reasons == [None, "unreadable_answer", "no_answer", "no_answer"]


@pytest.mark.parametrize(
    ("answer", "marks"),
    [
        (FULL, (88, 35, 25, 28)),
        (FULL.replace('"Overall Score": 88, ', ""), (88, 35, 25, 28)),  # summed
        (FULL.replace("88", "90"), (90, 35, 25, 28)),  # as released, the model's own sum
        ("**Overall Score**: 77", (77, math.nan, math.nan, math.nan)),
        ("overall score: 77.5", (77.5, math.nan, math.nan, math.nan)),
        (SHORT, (60, 30, 20, 10)),
        (SHORT.replace("30", "41"), None),
        (SHORT.replace("Semantic", "Other"), None),
        ('"Overall Score": 101', None),
        ('"Overall Score": -1', None),
        ('"Overall Score": "high"', None),
        ("I'm sorry, I can't help with 3 images.", None),
        ("", None),
    ],
)
def test_what_counts_as_marks(answer: str, marks: tuple | None) -> None:
    found = parse_marks(answer)
    assert (found is None) == (marks is None)
    if found and marks:
        np.testing.assert_array_equal(found, marks)


def test_words_of_an_answer_are_no_part_of_the_fingerprint(tmp_path: Path) -> None:
    prints = []
    for name, answer in {"a": FULL, "b": f"Well. {FULL}", "c": FULL.replace("88", "87")}.items():
        (tmp_path / name).write_text(json.dumps({"id": "x", "answer": answer}))
        prints.append(rubric(str(tmp_path / name))["rubric"].settings)
    assert prints[0] == prints[1] != prints[2]
    assert rubric("") == {}
    assert labels.score_text("rubric", 83.44) == "83.4" and "rubric" in labels.metric_names()


@pytest.mark.parametrize("line", ["{", "3", '{"id": "x"}', '{"id": 1, "answer": "y"}', "[" * 9999])
def test_a_line_of_another_form_is_named(tmp_path: Path, line: str) -> None:
    file = tmp_path / "answers.jsonl"
    file.write_text(f'{{"id": "a", "answer": "b"}}\n{line}\n')
    with pytest.raises(InputError, match=r"^metrics\.rubric: '.*answers.jsonl', line 2: ") as error:
        read_answers(str(file))
    assert "\n" not in str(error.value)
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="is not text"):
        read_answers(str(file))
    with pytest.raises(InputError, match=r"^metrics\.rubric: no file"):
        read_answers(str(tmp_path / "none"))


def test_a_run_without_painted_holes_is_refused(run: Path, capsys, tmp_path: Path) -> None:
    assert console(["rubric", str(tmp_path / "none")]) == 2
    assert "there is no run" in capsys.readouterr().err
    assert console(["rubric", str(run), "--set", "other"]) == 2
    assert "evaluate.holes" in capsys.readouterr().err
    for manifest in (run / "evaluation" / "images").rglob(".manifest.json"):
        manifest.unlink()
    assert console(["rubric", str(run)]) == 2
    assert "no finished images" in capsys.readouterr().err
