"""Tests of the web app in a real browser: Playwright drives the system's Chromium against `python app.py`."""
