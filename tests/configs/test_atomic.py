"""What is said where a file cannot be written."""

from __future__ import annotations

from errno import EACCES
from pathlib import Path

import pytest

from castor_configs.atomic import replacing, write_text


def test_the_file_that_was_asked_for_is_named_and_not_the_one_beside_it(tmp_path: Path) -> None:
    target = tmp_path / "report.json"
    with pytest.raises(PermissionError) as raised, replacing(target) as part:
        raise PermissionError(EACCES, "Permission denied", str(part))
    assert raised.value.filename == str(target)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError, match="expected the name of a file"):
        write_text(tmp_path, "text")
