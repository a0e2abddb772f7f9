"""The kinds of resource limits (getrlimit(2)) by the names that OCI configurations give them."""

# In the order of include/uapi/asm-generic/resource.h, and so with the kernel's numbers.
KINDS = {
    f"RLIMIT_{name}": number
    for number, name in enumerate(
        (
            *("CPU", "FSIZE", "DATA", "STACK", "CORE", "RSS", "NPROC", "NOFILE", "MEMLOCK", "AS"),
            *("LOCKS", "SIGPENDING", "MSGQUEUE", "NICE", "RTPRIO", "RTTIME"),
        )
    )
}
