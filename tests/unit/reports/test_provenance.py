from pathlib import Path

from topd_ray.reports.provenance import config_hash


def test_the_hash_follows_the_config_the_seed_and_the_files(
    load_run, tmp_path: Path
) -> None:
    config = load_run()
    base = config_hash(config, {"a": 1}, study_seed=0)
    assert config_hash(config, {"a": 1}, study_seed=0) == base
    others = {
        config_hash(config, {"a": 2}, study_seed=0),
        config_hash(config, {"a": 1}, study_seed=1),
        config_hash(load_run("probe.window=60"), {"a": 1}, study_seed=0),
    }
    with (tmp_path / "prompts.jsonl").open("a") as prompts:
        prompts.write('{"prompt": "w1"}\n')
    others.add(config_hash(config, {"a": 1}, study_seed=0))
    assert base not in others
    assert len(others) == 4
