# A server with keys of its own, a command, files that are copied.
mkdir -p /run/sshd
ssh-keygen -q -t ed25519 -N '' -f host
ssh-keygen -q -t ed25519 -N '' -f key
cat >configuration <<END
Port 2222
ListenAddress 127.0.0.1
HostKey $PWD/host
AuthorizedKeysFile $PWD/key.pub
PidFile $PWD/pid
StrictModes no
UsePAM no
PermitRootLogin yes
Subsystem sftp internal-sftp
END
/usr/sbin/sshd -f "$PWD/configuration" -E "$PWD/log"
until [ -e pid ]; do sleep 0.05; done
options="-i key -o StrictHostKeyChecking=no -o UserKnownHostsFile=$PWD/known -o LogLevel=ERROR"
ssh -p 2222 $options root@127.0.0.1 'echo said; exit 4' || echo "status $?"
head -c 1000000 /dev/zero | tr '\0' y >sent
scp -q -P 2222 $options -p sent "root@127.0.0.1:$PWD/received"
cmp sent received && echo same
echo typed | ssh -p 2222 $options root@127.0.0.1 cat
ssh -p 2222 -tt $options root@127.0.0.1 'tty | sed s,[0-9]*$,,' | tr -d '\r'
kill "$(cat pid)"
while [ -e pid ]; do sleep 0.05; done
ls
