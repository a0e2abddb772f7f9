#!/bin/sh
# What a pod of the DaemonSets does: pod.sh install | pod.sh remove. The node's root is at /host.
set -eu

here=$(dirname "$0")
# Where the node sees what this image holds.
copy=/run/tapwright-install

on_node() { # a command in the mounts of the node's process HOST
    nsenter -t "$HOST" -m -- "$@"
}

label() { # label ready | label null: the node's label, by its Python and this pod's account
    account=/var/run/secrets/kubernetes.io/serviceaccount
    cp "$account/ca.crt" "$account/token" "/host$copy/"
    chmod 600 "/host$copy/token"
    on_node /usr/bin/python3 - "$1" "$copy" "$NODE" <<'END'
import json, os, ssl, sys, urllib.request

value, directory, node = sys.argv[1:]
host, port = os.environ["KUBERNETES_SERVICE_HOST"], os.environ["KUBERNETES_SERVICE_PORT"]
labels = {"tapwright/runtime": None if value == "null" else value}
request = urllib.request.Request(
    f"https://{host}:{port}/api/v1/nodes/{node}",
    json.dumps({"metadata": {"labels": labels}}).encode(),
    {
        "Content-Type": "application/merge-patch+json",
        "Authorization": "Bearer " + open(f"{directory}/token").read(),
    },
    method="PATCH",
)
urllib.request.urlopen(request, context=ssl.create_default_context(cafile=f"{directory}/ca.crt"))
END
    rm "/host$copy/token"
}

mkdir -p "/host$copy"
cp "$here"/node.sh "$here"/tapwright-*.whl "/host$copy/"
case $1 in
install)
    if [ -e "$here/guest-image" ]; then
        cp "$here/guest-image" "/host$copy/"
        export IMAGE=$copy/guest-image
    fi
    on_node /bin/sh "$copy/node.sh" install "$copy"
    label ready
    ;;
remove)
    # No new pods first.
    label null
    on_node /bin/sh "$copy/node.sh" remove
    ;;
esac
rm -r "/host$copy"
touch /tmp/ready
echo "done: $1"
trap exit TERM
while :; do
    sleep 1000 &
    wait $!
done
