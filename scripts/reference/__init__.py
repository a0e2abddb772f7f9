"""Man pages and shell completions, written from the commands' own parsers: `commands` reads these,
`manual` and `completions` write. Run by setup.py, so: standard library only."""
