"""One file is one tab: TITLE, ORDER and `build(app)`; the tab bar is made of them."""
