"""A model folder that a test may change."""

import shutil
from pathlib import Path

import pytest


@pytest.fixture
def folder(student_folder: Path, tmp_path: Path) -> Path:
    return shutil.copytree(student_folder, tmp_path / "model")
