# A virtual environment, and a wheel that pip installs from a directory.
mkdir -p wheel/greeting-1.0.dist-info wheels
echo 'def main(): print("greetings from a wheel")' >wheel/greeting.py
printf 'Metadata-Version: 2.1\nName: greeting\nVersion: 1.0\n' >wheel/greeting-1.0.dist-info/METADATA
printf 'Wheel-Version: 1.0\nGenerator: hand\nRoot-Is-Purelib: true\nTag: py3-none-any\n' \
    >wheel/greeting-1.0.dist-info/WHEEL
printf '[console_scripts]\ngreet = greeting:main\n' >wheel/greeting-1.0.dist-info/entry_points.txt
printf '%s,,\n' greeting.py greeting-1.0.dist-info/METADATA greeting-1.0.dist-info/WHEEL \
    greeting-1.0.dist-info/entry_points.txt greeting-1.0.dist-info/RECORD \
    >wheel/greeting-1.0.dist-info/RECORD
(cd wheel && python3 -m zipfile --create ../wheels/greeting-1.0-py3-none-any.whl ./*)

python3 -m venv environment
environment/bin/pip --no-cache-dir install --quiet --no-index --find-links wheels \
    --disable-pip-version-check --root-user-action ignore greeting
environment/bin/greet
environment/bin/pip --disable-pip-version-check list --format freeze | grep greeting
environment/bin/pip --disable-pip-version-check uninstall --quiet --yes \
    --root-user-action ignore greeting
ls environment/bin | sort
