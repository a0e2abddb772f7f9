# npm installs a package from a tarball; fs.watch tells of what happens.
mkdir -p greeting application
cat >greeting/package.json <<'END'
{"name": "greeting", "version": "1.0.0", "main": "index.js", "bin": {"greet": "index.js"},
 "scripts": {"postinstall": "node -e \"require('fs').writeFileSync('installed', 'yes')\""}}
END
printf '#!/usr/bin/env node\nmodule.exports = () => "greetings";\nconsole.log(module.exports());\n' \
    >greeting/index.js
(cd greeting && npm pack --silent)
cd application
echo '{"name": "application", "version": "1.0.0"}' >package.json
npm install --silent --no-audit --no-fund --no-update-notifier ../greeting/greeting-1.0.0.tgz
ls -A node_modules node_modules/greeting
node_modules/.bin/greet
cat node_modules/greeting/installed && echo
npm ls --silent --parseable | sed 's,.*/,,'
cat >watch.js <<'END'
const fs = require("fs");
const { once } = require("events");
fs.mkdirSync("watched");
const seen = new Set();
const watcher = fs.watch("watched", (kind, name) => seen.add(`${kind} ${name}`));
async function until(text) {
    const end = Date.now() + 30000;
    while (!seen.has(text) && Date.now() < end) await new Promise((go) => setTimeout(go, 20));
    console.log(text, seen.has(text));
}
async function main() {
    fs.writeFileSync("watched/file", "1");
    await until("rename file");
    fs.appendFileSync("watched/file", "2");
    await until("change file");
    fs.renameSync("watched/file", "watched/other");
    await until("rename other");
    watcher.close();
    const stream = fs.createWriteStream("large");
    for (let n = 0; n < 100; n++) stream.write(Buffer.alloc(65536, n));
    stream.end();
    await once(stream, "finish");
    fs.cpSync("node_modules", "copied", { recursive: true });
    console.log(fs.statSync("large").size, fs.existsSync("copied/greeting/index.js"));
    fs.rmSync("copied", { recursive: true });
}
main();
END
node watch.js
