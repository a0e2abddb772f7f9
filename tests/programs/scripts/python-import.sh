# A start with much to load, in bytes that are compiled for it.
cat >program.py <<'END'
import asyncio
import http.client
import json
import sqlite3
import xml.dom.minidom


async def main():
    process = await asyncio.create_subprocess_exec("echo", "said", stdout=-1)
    return (await process.communicate())[0]


print(json.dumps({"ran": asyncio.run(main()).decode()}), sqlite3.sqlite_version > "3")
END
python3 program.py
python3 -m compileall -q . && ls __pycache__
