# Packages from a repository in a directory, one of which needs the other.
export LC_ALL=C
mkdir -p pool
for name in first second; do
    mkdir -p "$name/DEBIAN" "$name/opt"
    printf 'Package: tapwright-%s\nVersion: 1\nArchitecture: all\nMaintainer: A <a@example.org>\nDescription: %s\n' \
        "$name" "$name" >"$name/DEBIAN/control"
    [ "$name" = first ] || echo 'Depends: tapwright-first' >>"$name/DEBIAN/control"
    echo "$name" >"$name/opt/tapwright-$name"
    dpkg-deb --build --root-owner-group "$name" "pool/$name.deb" >/dev/null
done
dpkg-scanpackages pool 2>/dev/null >Packages
apt-ftparchive release . >Release
chmod 711 /root
rm -f /etc/apt/sources.list /etc/apt/sources.list.d/*
echo "deb [trusted=yes] file:$PWD ./" >/etc/apt/sources.list
apt-get -qq update
apt-cache search tapwright- | sort
apt-get -qq install --yes tapwright-second 2>&1 | grep -v -E 'Reading database|debconf|^Preparing'
cat /opt/tapwright-first /opt/tapwright-second
dpkg-query -W -f '${Package} ${Status}\n' 'tapwright-*'
apt-get -qq purge --yes tapwright-first 2>&1 | grep -v -E 'Reading database'
apt-get check -qq
ls /opt
