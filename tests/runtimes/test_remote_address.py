from __future__ import annotations

import pytest

from runtimes.errors import InputError
from runtimes.registry import open_runtime, parse
from runtimes.remote import TritonRuntime
from runtimes.remote_address import Address


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://localhost:8000/r20", Address("http", False, "localhost:8000", "r20")),
        ("http://localhost/r20/", Address("http", False, "localhost:80", "r20")),
        ("https://host/r20", Address("http", True, "host:443", "r20")),
        ("HTTPS://host/R20", Address("http", True, "host:443", "R20")),
        ("grpc://host/r20", Address("grpc", False, "host:8001", "r20")),
        ("grpcs://host:9/r20", Address("grpc", True, "host:9", "r20")),
        ("http://[::1]:8000/r20", Address("http", False, "[::1]:8000", "r20")),
        ("http://host:8000/team/a/r20", Address("http", False, "host:8000/team/a", "r20")),
        ("http://host:8000/my%20net", Address("http", False, "host:8000", "my net")),
        ("http://host:8000/v2/models/r20", Address("http", False, "host:8000", "r20")),
        ("http://host:8000/base/v2/models/r20/versions/3", Address("http", False, "host:8000/base", "r20", "3")),
        ("grpc://host:8001/v2/models/r20/versions/3", Address("grpc", False, "host:8001", "r20", "3")),
    ],
)
def test_a_url_is_read(url, expected):
    assert Address.parse(url) == expected


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("http://localhost:8000", "names no model"),
        ("http://localhost:8000/", "names no model"),
        ("http:///r20", "names no host"),
        ("http://host:port/r20", "is no URL"),
        ("http://host:99999/r20", "is no URL"),
        ("http://[::1/r20", "is no URL"),
        ("ftp://host/r20", "expected the URL of a model"),
        ("localhost:8000/r20", "expected the URL of a model"),
        ("http://host:8000/r20?version=1", "has something behind the model's name"),
        ("grpc://host:8001/team/r20", "more than one part behind the port"),
    ],
)
def test_what_is_no_url_of_a_model_is_refused_in_one_line(url, message):
    with pytest.raises(InputError, match=message) as caught:
        Address.parse(url)
    assert "\n" not in str(caught.value)


def test_a_password_is_refused_and_not_repeated():
    with pytest.raises(InputError, match="holds a name or password") as caught:
        Address.parse("http://me:secret@host:8000/r20")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("url", ["http://localhost:8000/r20", "grpc://[::1]:8001/r20", "https://host/a/b/r20"])
def test_a_url_stands_where_files_do(url):
    spec = parse(f"triton:{url}@version=1,timeout=2.5")
    assert (spec.name, spec.file, spec.kind) == ("triton", url, "served")
    assert spec.options == {"version": "1", "timeout": 2.5}
    assert parse(spec.label) == spec
    assert parse(f"{url}@timeout=2.5,version=1") == spec  # a URL needs no name
    assert isinstance(open_runtime(spec), TritonRuntime)


def test_a_url_is_refused_where_a_file_is_wanted_and_a_file_where_a_url_is():
    with pytest.raises(InputError, match="is the URL of a model on a server: use triton:http://host:8000/r20"):
        parse("onnxruntime:http://host:8000/r20")
    with pytest.raises(InputError, match="triton takes URLs as http://HOST:8000/MODEL"):
        parse("triton:localhost:8000/r20")


def test_options_that_cannot_be_are_refused():
    for timeout in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(InputError, match="expected a number above 0"):
            TritonRuntime("http://host:8000/r20", timeout=timeout)
    with pytest.raises(InputError, match="give one of them"):
        TritonRuntime("http://host:8000/v2/models/r20/versions/1", version="2")
