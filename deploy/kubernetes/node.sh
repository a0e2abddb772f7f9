#!/bin/sh
# Installs Tapwright on the node that this runs on, as root, or removes it:
#
#   node.sh install DIRECTORY     from DIRECTORY/tapwright-*.whl; again after an upgrade of that
#   node.sh remove
#   node.sh configure install|remove      containerd's configuration alone, without a restart
#
# PREFIX (/opt/tapwright) is where all of it goes, CONTAINERD (/etc/containerd/config.toml) the
# configuration that gets the runtime, between two lines that say so; RESTART (systemctl restart
# containerd) has containerd read it. Running pods stay. IMAGE, a file of `tapwright image export`,
# is imported; without it the guest image is built from the packages of the node's release.
set -eu

# Not that of the pod.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
prefix=${PREFIX:-/opt/tapwright}
config=${CONTAINERD:-/etc/containerd/config.toml}
restart=${RESTART:-systemctl restart containerd}
command=$prefix/venv/bin/tapwright
begin="# Tapwright begins: node.sh writes this."
end="# Tapwright ends."

packages() { # those that are lacking
    missing=
    for package in iproute2 iptables nftables python3-venv qemu-system-x86; do
        dpkg-query -W -f '${Status}' $package 2>/dev/null | grep -q 'ok installed' ||
            missing="$missing $package"
    done
    # Where the release has no virtiofsd of its own, QEMU's packages have it.
    [ -e /usr/libexec/virtiofsd ] || [ -e /usr/lib/qemu/virtiofsd ] || missing="$missing virtiofsd"
    command -v zstd >/dev/null || missing="$missing zstd"
    [ -n "$missing" ] || return 0
    apt-get -qq update
    known=
    for package in $missing; do
        if apt-cache show "$package" >/dev/null 2>&1; then known="$known $package"; fi
    done
    # shellcheck disable=SC2086  # a list of words
    DEBIAN_FRONTEND=noninteractive apt-get -qq install --yes --no-install-recommends $known \
        >/dev/null
}

without() { # containerd's configuration without our part
    [ ! -e "$config" ] || sed "/^$begin\$/,/^$end\$/d" "$config"
}

part() { # our part, for the version of the configuration given
    case $1 in
    3) plugin=io.containerd.cri.v1.runtime ;;
    *) plugin=io.containerd.grpc.v1.cri ;;
    esac
    table="plugins.\"$plugin\".containerd.runtimes"
    echo "$begin"
    # containerd 1.6 forgets its own runtime where another is named.
    if ! grep -qE "runtimes\.\"?runc\"?\]" "$config.new"; then
        echo "[$table.runc]"
        echo 'runtime_type = "io.containerd.runc.v2"'
    fi
    echo "[$table.tapwright]"
    echo 'runtime_type = "io.containerd.runc.v2"'
    echo "[$table.tapwright.options]"
    echo "BinaryName = \"$prefix/tapwright\""
    echo "$end"
}

configure() { # configure install|remove: 0 when the file has changed
    mkdir -p "$(dirname "$config")"
    without >"$config.new"
    if [ "$1" = install ]; then
        if ! grep -q '^version' "$config.new"; then
            { echo 'version = 2' && without; } >"$config.new"
        fi
        version=$(sed -n 's/^version *= *\([0-9]*\).*/\1/p' "$config.new")
        part "$version" >"$config.part"
        cat "$config.part" >>"$config.new"
        rm "$config.part"
    fi
    if [ -e "$config" ] && cmp -s "$config" "$config.new"; then
        rm "$config.new"
        return 1
    fi
    mv "$config.new" "$config"
}

install() {
    packages
    mkdir -p "$prefix"
    [ -x "$prefix/venv/bin/python" ] || /usr/bin/python3 -m venv "$prefix/venv"
    # All of it is in the wheel: nothing is fetched.
    "$prefix/venv/bin/pip" install --quiet --disable-pip-version-check --no-index --no-deps \
        --force-reinstall "$1"/tapwright-*.whl
    if [ ! -e "$prefix/configuration.toml" ]; then
        printf '[netmon]\nenable_netmon = true\n' >"$prefix/configuration.toml"
    fi
    cat >"$prefix/tapwright.new" <<END
#!/bin/sh
TAPWRIGHT_CONFIG=\${TAPWRIGHT_CONFIG:-$prefix/configuration.toml} exec $command "\$@"
END
    chmod 755 "$prefix/tapwright.new"
    mv "$prefix/tapwright.new" "$prefix/tapwright"
    if [ -n "${IMAGE:-}" ]; then
        "$prefix/tapwright" image import "$IMAGE"
    else
        "$prefix/tapwright" image build
    fi
    "$prefix/tapwright" check
    if configure install; then
        $restart
    fi
}

remove() {
    if [ -e "$config" ] && configure remove; then
        $restart
    fi
    # Guests that wait for the next sandbox, of each state directory of containerd's namespaces.
    for root in /var/lib/tapwright /run/containerd/runc/*; do
        [ ! -d "$root" ] || "$prefix/tapwright" --root "$root" sandbox spares --drop >/dev/null
    done
    # Sandboxes that run are those of pods that are still there: they need it to end.
    running=$(pgrep -f "$prefix/venv/bin/" 2>/dev/null | grep -vx $$ || true)
    if [ -n "$running" ]; then
        echo "pods with the RuntimeClass still run here: delete them first" >&2
        exit 1
    fi
    rm -rf "$prefix"
}

case "${1:-} $#" in
"install 2") install "$2" ;;
"remove 1") remove ;;
"configure 2") configure "$2" || true ;;
*)
    echo "usage: node.sh install DIRECTORY | node.sh remove | node.sh configure install|remove" >&2
    exit 2
    ;;
esac
