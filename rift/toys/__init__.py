"""Menu: each file is one choice."""
