"""The words of a command: what is a setting, a flag or neither, and what a value says."""

import pytest

from raypref.core.command_line import sorted_words
from raypref.core.config import InputError, load
from raypref.core.values import parse_value
from raypref.run.config import RunConfig

KEYS = ["seed", "run", "lora.rank", "a.beta", "b.beta", *(f"s{n}.batch" for n in range(6))]
FLAGS = ["--dry-run", "--redo"]
OPTIONS = {"--log": ("auto", "json")}


def sort(line: str) -> tuple[list[str], list[str], set[str], dict[str, str]]:
    bare, overrides, flags, options = sorted_words(
        line.split(), keys=KEYS, flags=FLAGS, options=OPTIONS
    )
    return bare, overrides, {*flags}, options


@pytest.mark.parametrize(
    ("line", "sorted_"),
    [
        ("tiny", (["tiny"], [], set(), {})),
        ("a=1 tiny x=y=z", (["tiny"], ["a=1", "x=y=z"], set(), {})),
        ("--a.beta 7 tiny", (["tiny"], ["a.beta=7"], set(), {})),
        ("--a.beta=7 tiny", (["tiny"], ["a.beta=7"], set(), {})),
        ("--seed -1 --run=--x", ([], ["seed=-1", "run=--x"], set(), {})),
        ("--no.such 1", ([], ["no.such=1"], set(), {})),  # named by whoever reads the settings
        ("--a.beta -0.5 --redo", ([], ["a.beta=-0.5"], {"--redo"}, {})),
        ("--log json --dry-run", ([], [], {"--dry-run"}, {"--log": "json"})),
        ("--log=json --log=auto", ([], [], set(), {"--log": "auto"})),
        ("new=1", ([], ["new=1"], set(), {})),
    ],
)
def test_words_are_sorted(line, sorted_):
    assert sort(line) == sorted_


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("--beta 7", "unknown option --beta; settings of that name: a.beta=7, b.beta=7"),
        ("--beta=7", "unknown option --beta; settings of that name: a.beta=7, b.beta=7"),
        ("--beta", "unknown option --beta; settings of that name: a.beta=VALUE, b.beta=VALUE"),
        ("--beta --redo", "settings of that name: a.beta=VALUE"),
        ("beta=7", "unknown key 'beta'; settings of that name: a.beta=7, b.beta=7"),
        ("--batch 8", "s3.batch=8 and 2 more (--help batch lists them)"),
        ("--rank 8", "settings of that name: lora.rank=8"),
        ("--redoo", "unknown option --redoo; the nearest is --redo; see --help"),
        ("--zzz", "unknown option --zzz; see --help"),
        ("-q", "unknown option -q; see --help"),
        ("--seed", "--seed needs a value: --seed VALUE, or --seed=VALUE"),
        ("--seed --dry-run", "--seed needs a value"),
        ("--seed --run 3", "--seed needs a value"),
        ("--log", "--log needs a value"),
        ("--log xml", "--log=xml: it takes auto, json"),
    ],
)
def test_what_cannot_be_sorted_says_the_fix(line, says):
    with pytest.raises(InputError) as error:
        sort(line)
    assert says in str(error.value)


@pytest.mark.parametrize(
    ("text", "kind", "value"),
    [
        ("a,b", tuple[str, ...], ["a", "b"]),
        ("a", tuple[str, ...], ["a"]),
        (" a , b ", tuple[str, ...], ["a", "b"]),
        ("1,2.5", tuple[float, ...], [1, 2.5]),
        ("1,b", tuple[int, ...], [1, "b"]),
        ("1,2024-05-01", tuple[str, ...], ["1", "2024-05-01"]),
        ("", tuple[str, ...], []),
        ('["a,b", "c"]', tuple[str, ...], ["a,b", "c"]),
        ("[1, 2]", tuple[int, ...], [1, 2]),
        ("a,b", str, "a,b"),
        ("a,b", None, "a,b"),
        ("2024-05-01", str, "2024-05-01"),
        ("'x y'", str, "x y"),
        ("true", bool, True),
        ("1e-4", float, 1e-4),
        ("{a = 'b'}", dict[str, str], {"a": "b"}),
    ],
)
def test_a_value_is_toml_or_text_or_a_list(text, kind, value):
    assert parse_value(text, kind) == value


def test_every_list_of_a_run_takes_words():
    words = ["trainings=stage1,stage2", "evaluate.seeds=1,2", "metrics.rewards=pickscore"]
    config = load(RunConfig, "tiny", [*words, "export.formats=folders,pickapic"])
    assert config.trainings == ("stage1", "stage2")
    assert config.evaluate.seeds == (1, 2)
    assert config.metrics.rewards == ("pickscore",)
    assert config.export.formats == ("folders", "pickapic")
    assert config == load(
        RunConfig,
        "tiny",
        [
            'trainings=["stage1", "stage2"]',
            "evaluate.seeds=[1, 2]",
            "metrics.rewards=['pickscore']",
            "export.formats=['folders', 'pickapic']",
        ],
    )
