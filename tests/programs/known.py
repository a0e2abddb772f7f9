"""What a container in a sandbox finds of its files that it would not find by runc; each has its row
in docs/oci.md."""

from tests.programs.comparison import Known

_NONE = "ENOTSUP"  # of two names for one number the one that Python has

EVERYWHERE = (
    Known(
        r".*\btemporary(_without_a_name)?\b.*|open_files\..*: O_TMPFILE",
        rf"{_NONE}.*",
        "`O_TMPFILE` in a directory of the host",
    ),
    Known(
        r"xattrs\.(names_and_sizes_of_attributes: name|attributes_of_the_system: ).*",
        r"EPERM|\[\]|\[.*ENODATA.*",
        "attributes in `trusted.` and `security.`, except capabilities and access control lists",
    ),
    Known(
        r"attributes\.set_ids_are_cleared: open to truncate by owner, 6777",
        ".*106777.*",
        "set-user-id bit of a file that its owner opens with `O_TRUNC`",
    ),
    Known(
        r"attributes\.extended_stat: birth",
        "false",
        "time of birth (`statx`)",
    ),
    Known(
        r"data\.allocating: (collapse|insert)",
        rf'\["{_NONE}".*',
        "`fallocate` that collapses or inserts a range",
    ),
    Known(
        r"data\.past_the_cache: unaligned",
        '.*"ok", "ok".*',
        "`O_DIRECT` that is not aligned",
    ),
    Known(
        r"data\.controls: (flags|immutable|mutable|version|written then)",
        r"ENOTTY|ok|\[\"ENOTTY\".*",
        "`chattr`, `lsattr`",
    ),
    Known(
        r"directories\.watching: append",
        '.*"1 modify old", "1 open old".*',
        "order of inotify's *modify* and *open* for `O_TRUNC`",
        until=(6, 11),
        since=(6, 11),
    ),
    Known(
        r"directories\.watching_by_fanotify: mark with names",
        "ENODEV",
        "fanotify with names (`FAN_REPORT_FID`)",
        until=(6, 8),
    ),
    Known(
        r"names\.devices: disk( made)?",
        "EPERM|ENOENT",
        "device nodes",
    ),
)
IN_THE_ROOT = (
    *EVERYWHERE,
    Known(
        r"names\.handles: handle",
        r"\[.*",
        "`name_to_handle_at` in the root filesystem",
    ),
)
IN_A_VOLUME = (
    *EVERYWHERE,
    Known(
        r"mounts\.overlay: mounted",
        "EINVAL",
        "overlayfs that a container mounts with its upper layer on files of the host",
    ),
)
