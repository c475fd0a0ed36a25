"""Command line: `main` runs it, `commands` has one module a verb, `options` defines shared options."""
