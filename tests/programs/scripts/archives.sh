# Owners, modes, times, links and attributes through tar, rsync and cp -a.
mkdir -p tree/sub/empty
for number in $(seq 100); do echo "content $number" >"tree/sub/file-$number"; done
chown -R 1000:1001 tree/sub
chown 12:34 tree/sub/file-1
chmod 4755 tree/sub/file-2
chmod 0 tree/sub/file-3
chmod 2770 tree/sub
ln tree/sub/file-4 tree/hard
ln -s sub/file-5 tree/soft
ln -s nowhere tree/dangling
mkfifo tree/fifo
truncate -s 8M tree/sparse
setfattr -n user.kind -v value tree/sub/file-6
setfacl -m u:1000:rw tree/sub/file-7
setcap cap_net_raw+p tree/sub/file-8
find tree -exec touch -h -d '2001-02-03 04:05:06.789 UTC' '{}' +
touch -d '1969-12-31 00:00:00 UTC' tree/sub/file-9

listed() (
    cd "$1"
    find . -type d -printf '%p %M %U:%G %n %T@\n' -o -printf '%p %M %U:%G %s %n %l %T@\n' | sort
    getfattr -d sub/file-6
    getfacl -cn sub/file-7
    getcap sub/file-8
    du -k sparse | cut -f 1
)
listed tree | tee expected
mkdir tarred
tar --create --sparse --xattrs --xattrs-include='*' --acls --format posix --file tree.tar -C tree .
tar --extract --xattrs --xattrs-include='*' --acls --file tree.tar -C tarred
rsync --archive --hard-links --acls --xattrs --sparse tree/ synced/
rsync --archive --hard-links --acls --xattrs --sparse --itemize-changes tree/ synced/
cp -a --sparse=always tree copied
for copy in tarred synced copied; do
    listed "$copy" >found
    diff expected found && echo "$copy: same"
done
echo changed >tree/sub/file-9
rm tree/sub/file-10
rsync --archive --hard-links --acls --xattrs --delete --checksum --sparse tree/ synced/
diff --recursive tree/sub synced/sub && echo synced
rm -r tree tarred synced copied
ls
