"""Downloads: checked by their hash, resumed, over https alone, and never unasked."""

import hashlib
import io
import urllib.error
import urllib.request
from email.message import Message

import pytest

from hggraph.data import archives
from hggraph.data.archives import download, sha256_of
from hggraph.data.mask_reader import DatasetError

URL = "https://example.org/data.zip"


class Answers:
    """Stands for the network: what each request asked for, and what it gets."""

    def __init__(self, monkeypatch, *answers):
        self.asked, self.answers = [], list(answers)
        monkeypatch.setattr(archives, "_open", self)

    def __call__(self, request, timeout):
        self.asked.append((request.full_url, request.get_header("Range")))
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        status, content, length = answer
        stream = io.BytesIO(content)
        stream.status, stream.headers = status, {"Content-Length": str(length)}
        return stream


BODY = b"content" * 1000
HASH = hashlib.sha256(BODY).hexdigest()


def test_nothing_is_fetched_unasked(tmp_path, monkeypatch):
    network = Answers(monkeypatch)
    with pytest.raises(DatasetError, match=rf"licence, then fetch {URL} there, or allow it with download=True"):
        download(URL, tmp_path / "a.zip", HASH)
    (tmp_path / "a.zip").write_bytes(BODY)
    assert download(URL, tmp_path / "a.zip", HASH.upper(), download=True) == tmp_path / "a.zip"
    (tmp_path / "a.zip").write_bytes(b"another")
    with pytest.raises(DatasetError, match=r"expected the file with SHA-256 .*; remove it to fetch it again"):
        download(URL, tmp_path / "a.zip", HASH, download=True)
    assert (tmp_path / "a.zip").read_bytes() == b"another" and network.asked == []


def test_download(tmp_path, monkeypatch):
    network = Answers(monkeypatch, (200, BODY, len(BODY)))
    path = download(URL, tmp_path / "a.zip", HASH, download=True)
    assert path.read_bytes() == BODY and sha256_of(path) == HASH
    assert network.asked == [(URL, None)] and [p.name for p in tmp_path.iterdir()] == ["a.zip"]


@pytest.mark.parametrize("resumed", [True, False])
def test_a_fetch_that_breaks_off_goes_on(tmp_path, monkeypatch, resumed):
    rest = (206, BODY[3000:], len(BODY) - 3000) if resumed else (200, BODY, len(BODY))
    network = Answers(monkeypatch, (200, BODY[:3000], len(BODY)), rest)
    with pytest.raises(DatasetError, match=r"it broke off 4,000 bytes before the end.*; call again to go on"):
        download(URL, tmp_path / "a.zip", HASH, download=True)
    assert not (tmp_path / "a.zip").exists()
    assert download(URL, tmp_path / "a.zip", HASH, download=True).read_bytes() == BODY
    assert network.asked == [(URL, None), (URL, "bytes=3000-")]
    assert [p.name for p in tmp_path.iterdir()] == ["a.zip"]


def test_a_fetch_that_was_whole_already(tmp_path, monkeypatch):
    (tmp_path / ".a.zip.part").write_bytes(BODY)
    Answers(monkeypatch, urllib.error.HTTPError(URL, 416, "Range Not Satisfiable", Message(), None))
    assert download(URL, tmp_path / "a.zip", HASH, download=True).read_bytes() == BODY


def test_another_file_at_that_address(tmp_path, monkeypatch):
    Answers(monkeypatch, (200, b"evil", 4), (200, BODY, len(BODY)))
    with pytest.raises(DatasetError, match="the file at that address is another than was meant"):
        download(URL, tmp_path / "a.zip", HASH, download=True)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(DatasetError, match="expected at most 5,000 bytes, got more"):
        download(URL, tmp_path / "a.zip", HASH, download=True, max_bytes=5000)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "error",
    [
        urllib.error.HTTPError(URL, 404, "Not Found", Message(), None),
        urllib.error.URLError("no network"),
        TimeoutError("timed out"),
        ConnectionResetError("reset"),
    ],
)
def test_an_address_that_does_not_answer(tmp_path, monkeypatch, error):
    Answers(monkeypatch, error)
    with pytest.raises(DatasetError, match=rf"{URL} could not be fetched"):
        download(URL, tmp_path / "a.zip", HASH, download=True)


def test_https_alone(tmp_path):
    for url in ("http://example.org/a.zip", "file:///etc/passwd", "ftp://example.org/a", "a.zip"):
        with pytest.raises(ValueError, match="`url` must begin with https://"):
            download(url, tmp_path / "a.zip", HASH, download=True)
    for wrong in ("", HASH[:-1], "x" * 64):
        with pytest.raises(ValueError, match="`sha256` must be 64 hexadecimal digits"):
            download(URL, tmp_path / "a.zip", wrong, download=True)
    handler, request = archives._HttpsAlone(), urllib.request.Request(URL)
    followed = handler.redirect_request(request, None, 302, "Found", Message(), "https://example.com/b")
    assert followed.full_url == "https://example.com/b"
    for target in ("http://example.org/a.zip", "file:///etc/passwd", "ftp://example.org/a"):
        with pytest.raises(urllib.error.URLError, match=f"redirected to {target}, which is not https"):
            handler.redirect_request(request, None, 302, "Found", Message(), target)
