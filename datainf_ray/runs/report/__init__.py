"""report.html, one self-contained page: what it shows, how it is drawn, and the templates that make it."""
