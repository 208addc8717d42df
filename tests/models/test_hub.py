"""Files of the hub without a network: in seconds, from what is kept, or one reason."""

import socket
import time

import pytest

from hggraph.models import from_pretrained
from hggraph.models._hub import fetch

pytest.importorskip("huggingface_hub")


@pytest.fixture
def no_network(monkeypatch):
    def refuse(address, timeout):
        raise OSError(101, "Network is unreachable")

    monkeypatch.setattr("urllib.request.getproxies", dict)
    monkeypatch.setattr(socket, "create_connection", refuse)


def test_an_answer_in_seconds(no_network, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    start = time.perf_counter()
    with pytest.raises(RuntimeError, match=r"ConnectionError: https://\S+ cannot be reached: Network is unreachable\)"):
        from_pretrained("nobody/has-this")
    assert time.perf_counter() - start < 5  # the hub's client alone takes 23 s


@pytest.mark.parametrize("proxies", [{}, {"https": "http://proxy:3128"}])
def test_what_was_fetched_before_is_kept(no_network, monkeypatch, proxies):
    asked = []
    monkeypatch.setattr("urllib.request.getproxies", lambda: proxies)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *what, **how: asked.append((what, how)) or "kept.bin")
    assert fetch("owner/name", "a.bin", "v1").name == "kept.bin"
    # a proxy may know a way where a direct connection does not
    assert asked == [(("owner/name", "a.bin"), {"revision": "v1", "local_files_only": not proxies})]
