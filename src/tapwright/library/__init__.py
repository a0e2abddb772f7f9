"""The public API, which `import tapwright` shows: sandboxes as objects, blocking and asyncio.

`sandbox` one sandbox and the list of all; `process` a command in a guest; `nics` its NICs and
routes; `files` its files; `asynchronous` the same with `await`, by the same code in threads. The
commands and the benchmarks use this, too.
"""
