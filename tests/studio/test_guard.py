"""Who may use the page, and what it may load: no model, no Gradio."""

import pytest

pytest.importorskip("fastapi", reason="the studio needs the extra `studio`")

from starlette.responses import PlainTextResponse
from starlette.testclient import TestClient

from lcrec.studio.guard import Guard


def ask(headers=None, *, token=None, hosts=None, auth=None):
    async def page(scope, receive, send):
        await PlainTextResponse("the page")(scope, receive, send)

    client = TestClient(Guard(page, token=token, hosts=hosts), base_url="http://127.0.0.1:7860")
    return client.get("/", headers=headers, auth=auth)


def test_the_token_is_the_password_or_a_bearer_token():
    refused = ask(token="secret")
    assert (refused.status_code, refused.headers["www-authenticate"][:5]) == (401, "Basic")
    assert "the page" not in refused.text
    assert ask(token="secret", auth=("anyone", "secret")).text == "the page"
    assert ask({"Authorization": "Bearer secret"}, token="secret").text == "the page"
    for wrong in ("Bearer secre", "Basic secret", "Basic !", "Digest secret", ""):
        assert ask({"Authorization": wrong}, token="secret").status_code == 401
    assert ask(token="secret", auth=("secret", "")).status_code == 401


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Host": "localhost:7860"}, 200),
        ({"Host": "evil.example:7860"}, 421),
        ({"Origin": "http://127.0.0.1:7860"}, 200),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Host": "[::1"}, 400),
        ({"Origin": "http://["}, 400),
    ],
)
def test_another_site_cannot_use_the_page(headers, status):
    assert ask(headers, hosts={"127.0.0.1", "localhost"}).status_code == status


def test_the_browser_is_told_to_load_nothing_from_elsewhere():
    policy = ask().headers["content-security-policy"]
    assert "default-src 'self'" in policy
    assert "connect-src 'self'" in policy
    assert "http" not in policy
