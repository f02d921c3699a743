"""What is decided without a daemon leaves nothing where the daemon could not use it."""

import os
from pathlib import Path

import pytest

from axiond.alone import folder_for


def test_the_daemons_folder_is_used_by_its_owner_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert folder_for(tmp_path) == tmp_path
    assert folder_for(tmp_path / "none") == tmp_path / "cache/axiond"
    if os.geteuid() == 0:
        (tmp_path / "state").mkdir()
        os.chown(tmp_path / "state", 12345, 12345)
        assert folder_for(tmp_path / "state") == tmp_path / "cache/axiond"
    else:
        assert folder_for(Path("/")) == tmp_path / "cache/axiond"
