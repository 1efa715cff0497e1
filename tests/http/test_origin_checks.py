# SPDX-License-Identifier: GPL-3.0-only
"""Which requests of web pages are refused: a table of hosts, origins and settings."""

from __future__ import annotations

import pytest

from modeld.config.settings import Settings
from modeld.errors import HostNotAllowed, OriginNotAllowed
from modeld.http.origin_checks import AllowedHosts, AllowedOrigins, OriginChecks

OWN = ("gpubox", "gpubox.example.com", "gpubox.local")
LISTED = Settings(
    addr="bound.lan:8080", allowed_hosts=("modeld.default.svc.cluster.local", "*.example.org", "Caps.LAN.")
)
CORS = Settings(
    cors_enabled=True,
    cors_allowed_origins=(
        *("https://app.example", "http://localhost:3000", "https://full.example:443", "http://[::1]:5173"),
        *("chrome-extension://abcdefgh", "tauri://localhost", "vscode-webview://*"),
    ),
)


def checks(settings: Settings, *, keys: bool = False) -> OriginChecks:
    hosts = None if keys else AllowedHosts.of(settings, OWN)
    return OriginChecks(hosts=hosts, origins=AllowedOrigins.of(settings))


def outcome(
    settings: Settings,
    *headers: tuple[str, str],
    method: str = "GET",
    keys: bool = False,
    encrypted: bool = False,
    any_host: bool = False,
) -> int:
    """The status that a request gets from the checks: 200 where they let it through."""
    sent = [(name.encode(), value.encode("latin-1")) for name, value in headers]
    try:
        checks(settings, keys=keys).check(sent, method=method, encrypted=encrypted, any_host=any_host)
    except (HostNotAllowed, OriginNotAllowed) as error:
        return error.status
    return 200


SERVED = [
    *(
        "localhost",
        "LocalHost:8080",
        "localhost.",
        "localhost.:8080",
        "localhost:",
        "a.localhost",
        "a.b.localhost:1",
    ),
    *("127.0.0.1", "127.0.0.1:8080", "10.1.2.3:80", "203.0.113.9", "0.0.0.0:8080"),
    *("[::1]", "[::1]:8080", "[0:0:0:0:0:0:0:1]", "[FE80::1]:8080", "[::ffff:127.0.0.1]:8080"),
    *("host.docker.internal:8080", "host.containers.internal"),
    *("gpubox", "GPUBOX:8080", "gpubox.example.com.", "gpubox.local"),
    *("bound.lan:8080", "bound.lan:443", "modeld.default.svc.cluster.local", "caps.lan", "caps.lan.:1"),
    *("a.example.org", "a.b.EXAMPLE.org.:8080"),
    "",
]
REFUSED = [
    *("evil.example", "evil.example:8080", "evil.example.", "EVIL.example"),
    *(
        "localhost.evil.example",
        "notlocalhost",
        "127.0.0.1.evil.example",
        "127.0.0.1.nip.io",
        "[::1].evil.example",
    ),
    *("gpubox.evil.example", "gpubox2", "local", "internal", "x.internal", "docker.internal"),
    *(
        "example.org",
        "badexample.org",
        "modeld.default.svc",
        "svc.cluster.local",
        "xmodeld.default.svc.cluster.local",
    ),
    *("2130706433", "0x7f000001", "127.1", "127.0.0.01", "256.0.0.1", "1.2.3.4.5"),
    *("::1", "[::1", "::1]", "[]", "[g::1]", "[::1%25eth0]", "[127.0.0.1]", "[::1]8080"),
    *(
        "localhost:x",
        "localhost:80:80",
        "localhost:123456",
        ":8080",
        "localhost/",
        "a@localhost",
        "localhost evil",
    ),
    *(
        "localhost, evil.example",
        "evil.example#localhost",
        "xn--evil-.example",
        "\xe9vil.example",
        "*",
        "*.example.org",
    ),
    *("null", "localhost..", ".localhost", "-localhost-"),
]


@pytest.mark.parametrize("host", SERVED)
def test_names_of_this_server_are_served_without_keys(host: str) -> None:
    """Addresses, localhost, what containers call it, its own names, and what the settings list."""
    assert outcome(LISTED, ("host", host)) == 200


@pytest.mark.parametrize("host", REFUSED)
def test_any_other_name_may_be_a_rebound_page(host: str) -> None:
    """421 for every method; with keys in force, and where the host does not matter, it is served."""
    for method in ("GET", "OPTIONS", "POST"):
        assert outcome(LISTED, ("host", host), method=method) == 421
    assert outcome(LISTED, ("host", host), keys=True) == 200
    assert outcome(LISTED, ("host", host), any_host=True) == 200


def test_a_request_without_a_host_is_no_browsers() -> None:
    """HTTP/1.0 needs none; two of them are refused."""
    assert outcome(Settings()) == 200
    assert outcome(Settings(), ("host", "localhost"), ("host", "localhost")) == 421


def test_a_star_is_any_host() -> None:
    """Malformed ones are refused nevertheless."""
    settings = Settings(allowed_hosts=("*",))
    assert outcome(settings, ("host", "evil.example:1")) == 200
    assert outcome(settings, ("host", "a b")) == 421


@pytest.mark.parametrize("addr", [":8080", "127.0.0.1:8080", "[::1]:1", "unix:/run/modeld.sock", "fd://3"])
def test_an_address_without_a_name_adds_none(addr: str) -> None:
    """Nothing but a name is taken from `addr`."""
    assert AllowedHosts.of(Settings(addr=addr)).names == AllowedHosts.of(Settings()).names


OWN_ORIGIN = [
    ("127.0.0.1:8080", "http://127.0.0.1:8080"),
    ("localhost:8080", "http://localhost:8080"),
    ("LOCALHOST:8080", "HTTP://LocalHost:8080"),
    ("localhost.:8080", "http://localhost:8080"),
    ("[::1]:8080", "http://[::1]:8080"),
    ("[0:0::1]:8080", "http://[::1]:8080"),
    ("gpubox", "http://gpubox"),
    ("gpubox:80", "http://gpubox"),
    ("gpubox", "http://gpubox:80"),
    ("gpubox", "https://gpubox"),
    ("gpubox:443", "https://gpubox"),
    ("gpubox:8443", "https://gpubox:8443"),
]
FOREIGN = [
    ("127.0.0.1:8080", "http://evil.example"),
    ("127.0.0.1:8080", "http://127.0.0.1"),
    ("127.0.0.1:8080", "http://127.0.0.1:3000"),
    ("127.0.0.1:8080", "http://localhost:8080"),
    ("127.0.0.1:8080", "https://127.0.0.1"),
    ("127.0.0.1:8080", "http://127.0.0.1:8080.evil.example"),
    ("localhost:8080", "http://localhost:80"),
    ("gpubox:80", "https://gpubox"),
    ("gpubox", "http://gpubox:8080"),
    ("localhost:8080", "app://localhost:8080"),
    ("localhost:8080", "null"),
    ("localhost:8080", ""),
    ("localhost:8080", "localhost:8080"),
    ("localhost:8080", "//localhost:8080"),
    ("localhost:8080", "http://localhost:8080/"),
    ("localhost:8080", "http://localhost:8080 http://localhost:8080"),
    ("localhost:8080", "http://localhost:8080, http://evil.example"),
    ("localhost:8080", "http://a@localhost:8080"),
    ("localhost:8080", "http:localhost:8080"),
    ("localhost:8080", "file://"),
    ("localhost:8080", "http://"),
    ("localhost:8080", "\xff"),
    ("", "http://localhost:8080"),
    ("localhost:8080", "chrome-extension://abcdefgh"),
]


@pytest.mark.parametrize(("host", "origin"), OWN_ORIGIN)
def test_a_page_of_the_daemon_itself_may_do_everything(host: str, origin: str) -> None:
    """Scheme, host and port as the client sees them; https may be a proxy's."""
    assert outcome(Settings(), ("host", host), ("origin", origin), method="POST") == 200


@pytest.mark.parametrize(("host", "origin"), FOREIGN)
def test_a_page_of_another_origin_may_only_read(host: str, origin: str) -> None:
    """403 for every method that may change something; whether it can read the rest is for CORS to say."""
    for method in ("POST", "PUT", "DELETE", "PATCH", "BREW"):
        assert outcome(Settings(), ("host", host), ("origin", origin), method=method) == 403
        assert outcome(Settings(), ("host", host), ("origin", origin), method=method, keys=True) == 403
    for method in ("GET", "HEAD", "OPTIONS"):
        assert outcome(Settings(), ("host", host), ("origin", origin), method=method) == 200


def test_where_the_daemon_speaks_tls_a_page_over_http_is_another_origin() -> None:
    """A page over HTTP may be anybody's on the way."""
    host = ("host", "gpubox:8443")
    assert outcome(Settings(), host, ("origin", "http://gpubox:8443"), method="POST", encrypted=True) == 403
    assert outcome(Settings(), host, ("origin", "https://gpubox:8443"), method="POST", encrypted=True) == 200


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        ("https://app.example", 200),
        ("https://app.example:443", 200),
        ("HTTPS://APP.example", 200),
        ("https://full.example", 200),
        ("http://[::1]:5173", 200),
        ("http://localhost:3000", 200),
        ("chrome-extension://abcdefgh", 200),
        ("tauri://localhost", 200),
        ("vscode-webview://1a2b3c", 200),
        ("http://app.example", 403),
        ("https://app.example:444", 403),
        ("https://app.example.evil", 403),
        ("https://x.app.example", 403),
        ("chrome-extension://other", 403),
        ("app://localhost", 403),
        ("null", 403),
        ("*", 403),
        ("vscode-webview://", 200),
        ("vscode-webview", 403),
    ],
)
def test_origins_that_cors_lists_may_do_everything(origin: str, status: int) -> None:
    """These and no other; none of them without `cors_enabled`."""
    request = (("host", "localhost:8080"), ("origin", origin), ("sec-fetch-site", "cross-site"))
    assert outcome(CORS, *request, method="POST") == status
    off = Settings(cors_allowed_origins=CORS.cors_allowed_origins)
    assert outcome(off, *request, method="POST") == 403


@pytest.mark.parametrize("origin", ["https://any.example", "null", "app://x", "file://"])
def test_a_star_is_any_origin(origin: str) -> None:
    """As CORS has it: such a page may read the answer, too. What is no origin is refused all the same."""
    settings = Settings(cors_enabled=True, cors_allowed_origins=("*",))
    assert outcome(settings, ("host", "localhost"), ("origin", origin), method="POST") == 200
    assert outcome(settings, ("host", "localhost"), ("origin", "a b"), method="POST") == 403


def test_null_is_allowed_only_where_it_is_listed() -> None:
    """Every sandboxed frame has that origin."""
    request = (("host", "localhost"), ("origin", "null"))
    listed = Settings(cors_enabled=True, cors_allowed_origins=("null",))
    assert outcome(listed, *request, method="POST") == 200
    assert outcome(listed, ("host", "localhost"), ("origin", "null://x"), method="POST") == 403


def test_several_origins_are_refused() -> None:
    """No browser sends them."""
    own = ("origin", "http://localhost:8080")
    assert outcome(Settings(), ("host", "localhost:8080"), own, own, method="POST") == 403


@pytest.mark.parametrize(
    ("sites", "status"),
    [
        ((), 200),
        (("same-origin",), 200),
        (("none",), 200),
        (("cross-site",), 403),
        (("same-site",), 403),
        (("Cross-Site",), 403),
        (("",), 403),
        (("odd",), 403),
        (("none", "cross-site"), 403),
    ],
)
def test_without_an_origin_sec_fetch_site_decides(sites: tuple[str, ...], status: int) -> None:
    """Programs send neither; with an Origin it is not looked at."""
    sent = [("sec-fetch-site", site) for site in sites]
    assert outcome(Settings(), ("host", "localhost"), *sent, method="POST") == status
    assert outcome(Settings(), ("host", "localhost"), *sent) == 200
    own = ("origin", "http://localhost")
    assert outcome(Settings(), ("host", "localhost"), own, *sent, method="POST") == 200


def test_a_rebound_page_fails_at_its_host_before_its_origin_is_compared() -> None:
    """Its Origin equals its Host. With keys it passes here, and has none to show."""
    rebound = (("host", "evil.example:8080"), ("origin", "http://evil.example:8080"))
    assert outcome(Settings(), *rebound, method="POST") == 421
    assert outcome(Settings(), *rebound, method="POST", keys=True) == 200


def test_a_refusal_says_what_to_set() -> None:
    """The setting, its flag and variable, and a part of what was sent."""
    with pytest.raises(HostNotAllowed, match=r'"evil\.example".*allowed_hosts.*MODELD_ALLOWED_HOSTS'):
        checks(Settings()).check([(b"host", b"evil.example")], method="GET", encrypted=False, any_host=False)
    evil = [(b"host", b"localhost"), (b"origin", b"http://evil.example")]
    with pytest.raises(OriginNotAllowed, match=r'"http://evil\.example".*cors_enabled.*cors_allowed_origins'):
        checks(Settings()).check(evil, method="POST", encrypted=False, any_host=False)
    with pytest.raises(OriginNotAllowed) as caught:
        checks(Settings()).check([(b"origin", b"x" * 10_000)], method="POST", encrypted=False, any_host=False)
    assert len(caught.value.message) < 300
