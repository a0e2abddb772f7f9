# A repository from its beginning: commits, branches, a clone, a second work tree, packing.
export GIT_AUTHOR_NAME=A GIT_AUTHOR_EMAIL=a@example.org GIT_COMMITTER_NAME=C \
    GIT_COMMITTER_EMAIL=c@example.org GIT_AUTHOR_DATE='2020-01-01T00:00:00Z' \
    GIT_COMMITTER_DATE='2020-01-01T00:00:00Z'
git init --quiet --initial-branch main repository
cd repository
for number in $(seq 60); do
    mkdir -p "directory-$((number % 7))"
    echo "file $number" >"directory-$((number % 7))/file-$number"
done
ln -s directory-1/file-1 link
git add .
git commit --quiet --message first
git status --short
git checkout --quiet -b other
echo changed >directory-1/file-1
git rm --quiet directory-2/file-2
git mv directory-3/file-3 moved
git commit --quiet --all --message second
git checkout --quiet main
echo more >>directory-4/file-4
git commit --quiet --all --message third
git merge --quiet --no-edit other
git log --format='%H %s' --graph
git worktree add --quiet ../tree other
git -C ../tree status --short --branch
git stash list
git gc --quiet
git fsck --no-progress
git count-objects -v | grep -v size
cd ..
git clone --quiet repository clone
git clone --quiet --bare --no-local repository bare.git
git -C clone log --format=%H -1
git -C repository push --quiet ../bare.git main:pushed
git -C bare.git branch
git -C repository bisect start --quiet HEAD HEAD^ 2>/dev/null || true
git -C clone diff --stat HEAD^
find clone -type f -not -path '*/.git/*' | sort | xargs sha256sum | sha256sum
