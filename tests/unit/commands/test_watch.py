"""`topd watch` and `topd train --watch`: the address, and when the server ends."""

import re
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from topd_ray.commands.watch import watch, watching
from topd_ray.errors import UserError

DEADLINE_S = 120.0


def test_the_server_of_a_run_ends_with_it(
    synthetic: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    printed = ""
    until_s = time.monotonic() + DEADLINE_S
    with watching(synthetic):
        while "http://" not in printed:
            assert time.monotonic() < until_s, f"no address in {printed!r}"
            printed += capfd.readouterr().err
            time.sleep(0.05)
        (address,) = re.findall(r"http://127\.0\.0\.1:\d+/", printed)
        with urllib.request.urlopen(address, timeout=DEADLINE_S) as answer:
            assert answer.status == 200
    with pytest.raises(urllib.error.URLError, match="refused"):
        urllib.request.urlopen(address, timeout=DEADLINE_S)


def test_a_folder_that_is_no_run_is_the_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no run folder"):
        watch(tmp_path, host="127.0.0.1", port=0)


def test_an_address_that_cannot_be_bound_is_the_users_mistake(synthetic: Path) -> None:
    with pytest.raises(UserError, match=r"--host 192\.0\.2\.1 --port 80: cannot be"):
        watch(synthetic, host="192.0.2.1", port=80)
