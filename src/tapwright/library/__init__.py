"""The public API, which `import tapwright` shows: sandboxes as objects, blocking and asyncio.

`sandbox` is one sandbox, and the list of all; `nics` has its NICs and routes, `files` its files;
`foreground` runs a command of a guest on this terminal. `asynchronous` has all of that with
`await`: the same code, in threads. The commands and the benchmarks use the library, too.
"""
