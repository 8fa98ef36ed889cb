"""Charts as inline SVG: no script, no font, no colour of their own; the page's style sheet themes them."""
