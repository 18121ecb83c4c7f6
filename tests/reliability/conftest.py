"""The browser tests here visit the app as those of `tests/browser` do."""

from tests.browser.conftest import chromium, visit  # noqa: F401
