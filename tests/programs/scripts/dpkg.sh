# Packages that are built, installed, upgraded, and removed; with a changed configuration file.
export LC_ALL=C
package() {
    mkdir -p "$1/DEBIAN" "$1/etc" "$1/usr/bin" "$1/usr/share/tool"
    printf 'Package: tapwright-tool\nVersion: %s\nArchitecture: all\nMaintainer: A <a@example.org>\nDescription: tool\n' \
        "$1" >"$1/DEBIAN/control"
    echo /etc/tool.conf >"$1/DEBIAN/conffiles"
    printf '#!/bin/sh\necho "postinst $*"\n' >"$1/DEBIAN/postinst"
    printf '#!/bin/sh\necho "prerm $*"\n' >"$1/DEBIAN/prerm"
    chmod 755 "$1/DEBIAN/postinst" "$1/DEBIAN/prerm"
    echo "setting of $1" >"$1/etc/tool.conf"
    printf '#!/bin/sh\necho tool %s\n' "$1" >"$1/usr/bin/tapwright-tool"
    chmod 755 "$1/usr/bin/tapwright-tool"
    for number in $(seq 50); do echo "$1 $number" >"$1/usr/share/tool/$number"; done
    dpkg-deb --build --root-owner-group "$1" "$1.deb"
}
package 1.0
package 2.0
unpacked() { grep -v '^(Reading database'; }
dpkg --install 1.0.deb | unpacked
tapwright-tool
dpkg --verify tapwright-tool
echo mine >/etc/tool.conf
dpkg --install --force-confold 2.0.deb | unpacked
tapwright-tool
cat /etc/tool.conf /etc/tool.conf.dpkg-dist
dpkg --listfiles tapwright-tool | wc -l
dpkg --verify tapwright-tool || true
dpkg --purge tapwright-tool | unpacked
ls /etc/tool.conf* /usr/share/tool 2>&1 || true
dpkg --audit
