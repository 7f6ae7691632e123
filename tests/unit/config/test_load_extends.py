"""`extends`: a small variant over a whole config; chains are followed, circles are
named.
"""

from collections.abc import Callable
from pathlib import Path

import pytest

from topd_ray.config import dump_config, load_config
from topd_ray.errors import UserError

BASE = """
run: {seed: 3, name: base}
prompts: {path: data.jsonl, max_tokens: 64}
rollout:
  engine: &engine
    dtype: float32
    max_num_seqs: 8
teacher: {model: big, engine: *engine}
learner: {model: small, betas: [0.9, 0.98]}
"""

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def written(name: str, text: str) -> Path:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        return path

    written("base.yaml", BASE)
    return written


def test_a_variant_changes_what_it_names_and_nothing_else(write: Write) -> None:
    variant = load_config(
        write(
            "v.yaml",
            "extends: base.yaml\nrun: {seed: 4}\nlearner: {betas: [0.5, 0.6]}\n",
        )
    )
    assert (variant.run.seed, variant.run.name) == (4, "base")
    assert (variant.learner.model, variant.learner.betas) == ("small", (0.5, 0.6))
    assert variant.prompts.max_tokens == 64


def test_a_variant_that_changes_nothing_is_the_file_it_extends(write: Write) -> None:
    base = write("base.yaml", BASE)
    assert load_config(write("v.yaml", "extends: base.yaml\n")) == load_config(base)


def test_what_an_anchor_shared_in_the_base_is_changed_in_one_place_only(
    write: Write,
) -> None:
    variant = load_config(
        write("v.yaml", "extends: base.yaml\nrollout: {engine: {max_num_seqs: 2}}\n")
    )
    assert (
        variant.rollout.engine.max_num_seqs,
        variant.teacher.engine.max_num_seqs,
    ) == (2, 8)
    assert variant.rollout.engine.dtype == "float32"


def test_an_anchor_of_the_variants_own_works(write: Write) -> None:
    variant = load_config(
        write(
            "v.yaml",
            "extends: base.yaml\nrollout: {engine: &mine {max_num_seqs: 2}}\n"
            "teacher: {engine: *mine}\n",
        )
    )
    assert (
        variant.teacher.engine.max_num_seqs,
        variant.rollout.engine.max_num_seqs,
    ) == (2, 2)


def test_a_chain_is_followed_from_folder_to_folder_and_the_nearest_wins(
    write: Write,
) -> None:
    write("middle.yaml", "extends: base.yaml\nrun: {seed: 5, name: middle}\n")
    last = write("deep/last.yaml", "extends: ../middle.yaml\nrun: {name: last}\n")
    config = load_config(last)
    assert (config.run.seed, config.run.name, config.prompts.max_tokens) == (
        5,
        "last",
        64,
    )
    assert load_config(last, ["run.seed=6"]).run.seed == 6, (
        "an override stands above all files"
    )


def test_a_whole_path_may_be_extended(write: Write, tmp_path: Path) -> None:
    config = load_config(write("deep/v.yaml", f"extends: {tmp_path / 'base.yaml'}\n"))
    assert config.run.seed == 3


def test_a_null_takes_a_value_back(write: Write) -> None:
    variant = load_config(
        write(
            "v.yaml",
            "extends: base.yaml\nteacher: {model: null, source: student}\n"
            "objective: {context: reference}\n",
        )
    )
    assert variant.teacher.model is None


def test_what_the_base_leaves_open_the_variant_may_fill_in(write: Write) -> None:
    base = write("base.yaml", BASE.replace("model: big", "model: '???'"))
    variant = write("v.yaml", "extends: base.yaml\nteacher: {model: bigger}\n")
    assert load_config(variant).teacher.model == "bigger"
    with pytest.raises(UserError, match=r"base\.yaml: .*Missing mandatory value"):
        load_config(base)


def test_the_resolved_config_extends_nothing(write: Write, tmp_path: Path) -> None:
    variant = load_config(write("v.yaml", "extends: base.yaml\nrun: {seed: 4}\n"))
    (tmp_path / "base.yaml").unlink()
    assert load_config(write("config.yaml", dump_config(variant))) == variant


@pytest.mark.parametrize("length", [1, 2, 3])
def test_a_circle_is_refused_with_the_way_round(length: int, write: Write) -> None:
    names = [f"c{index}.yaml" for index in range(length)]
    for name, following in zip(names, names[1:] + names[:1], strict=True):
        first = write(name, f"extends: {following}\n").with_name(names[0])
    with pytest.raises(UserError, match="extends goes round in a circle") as caught:
        load_config(first)
    chain = str(caught.value).split("circle: ")[1].split(";")[0].split(" -> ")
    assert [Path(step).name for step in chain] == [*names, names[0]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "extends: none.yaml\n",
            r"none\.yaml, which .*v\.yaml extends: no such config file",
        ),
        (
            "extends: [base.yaml]\n",
            r"v\.yaml: extends: expected the name of another file",
        ),
        ("extends: 5\n", r"expected the name of another file, found 5"),
        ("extends:\n", r"expected the name of another file, found None"),
        ("extends: list.yaml\n", r"list\.yaml: expected sections"),
        ("extends: broken.yaml\n", r"broken\.yaml: not readable as YAML"),
        ("run: {extends: base.yaml}\n", r"run\.extends: unknown key"),
        ("extends: base.yaml\nrun: {sed: 1}\n", r"v\.yaml: run\.sed: unknown key"),
    ],
)
def test_a_mistake_names_the_file_it_is_in(
    text: str, message: str, write: Write
) -> None:
    write("list.yaml", "- a\n")
    write("broken.yaml", "a: [\n")
    with pytest.raises(UserError, match=message) as caught:
        load_config(write("v.yaml", text))
    assert "\n" not in str(caught.value)
