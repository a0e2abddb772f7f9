"""The keys that only Kata Containers uses: for containers, file systems, tracing, other
hypervisors. Tapwright ignores them; a key that neither knows is a mistake.

From pkg/katautils/config.go of kata-containers/runtime (1.x) and of kata-containers (2.x to 4.x),
from src/libs/kata-types of the latter (its runtime in Rust, from 3.0 on), and from openEuler's
patches of the former.
"""

_QEMU = """
    block_device_aio block_device_cache_direct block_device_cache_noflush block_device_cache_set
    block_device_driver block_device_logical_sector_size block_device_physical_sector_size
    cold_plug_vfio confidential_guest cpu_features ctlpath default_gpu_model default_gpus
    default_root_ports disable_block_device_use disable_guest_selinux disable_image_nvdimm
    disable_nested_virtualization disable_nesting_checks disable_seccomp disable_selinux
    disk_rate_limiter_bw_max_rate disk_rate_limiter_bw_one_time_burst disk_rate_limiter_ops_max_rate
    disk_rate_limiter_ops_one_time_burst enable_guest_swap enable_iommu enable_iommu_platform
    enable_iothreads enable_mem_prealloc enable_numa enable_swap enable_vcpus_pinning
    enable_vhost_user_store enable_virtio_mem entropy_source extra_monitor_socket firmware
    firmware_volume guest_extension_images guest_hook_path guest_memory_dump_paging
    guest_memory_dump_path guest_pre_attestation guest_pre_attestation_kbs_mode
    guest_pre_attestation_kbs_uri guest_pre_attestation_keyset guest_pre_attestation_proxy
    guest_pre_attestation_secret_guid guest_pre_attestation_secret_type
    guest_swap_create_threshold_secs guest_swap_path guest_swap_size_percent hot_plug_vfio
    hotplug_vfio_on_root_bus hugepage_type hypervisor_loglevel image indep_iothreads initdata
    jailer_path kernel_verity_params machine_accelerators measurement_algo memory_offset msize_9p
    net_rate_limiter_bw_max_rate net_rate_limiter_bw_one_time_burst net_rate_limiter_ops_max_rate
    net_rate_limiter_ops_one_time_burst network_queues num_queues numa_mapping overhead_memory
    overhead_vcpus pcie_switch_port pflashes prefetch_list_path queue_size
    reclaim_guest_freed_memory rootfs_type rootless seccomp_sandbox seccompsandbox sev_cert_chain
    sev_guest_policy sev_snp_guest snp_certs_path snp_guest_policy snp_id_auth snp_id_block
    tdx_quote_generation_service_socket_port use_legacy_serial use_vsock valid_ctlpaths
    valid_entropy_sources valid_file_mem_backends valid_hypervisor_paths valid_jailer_paths
    valid_vhost_user_store_paths valid_virtio_fs_daemon_paths verity_params
    vhost_user_reconnect_timeout_sec vhost_user_store_path virtio_fs_cache_size virtio_fs_is_dax
    virtio_fs_queue_size vm_rootfs_driver
"""
_RUNTIME = """
    agent_name cold_plug_vfio create_container_timeout dan_conf disable_guest_empty_dir
    disable_selinux emptydir_mode enable_agent_pidns enable_cpu_memory_hotplug enable_pprof
    enable_tracing enable_vcpus_pinning experimental experimental_force_guest_pull
    guest_selinux_label hypervisor_name jaeger_endpoint jaeger_password jaeger_user keep_abnormal
    kubelet_root_dir log_level name passfd_listener_port pod_resource_api_sock sandbox_bind_mounts
    sandbox_cgroup_only sealed_secret_enabled shared_mounts static_resource_mgmt
    static_sandbox_resource_mgmt use_passfd_io vfio_mode
"""
_AGENT = """
    cdh_api_timeout cdh_api_timeout_ms container_pipe_size create_container_timeout
    debug_console_enabled dial_timeout dial_timeout_ms enable_blk_mount enable_debug enable_tracing
    health_check_request_timeout_ms kernel_modules launch_process_timeout log_level log_port
    mem_agent policy reconnect_timeout_ms request_timeout_ms server_port trace_mode trace_type
    visible_cdi_devices
"""

KEYS = {
    section: frozenset(keys.split())
    for section, keys in {
        "hypervisor.qemu": _QEMU,
        "runtime": _RUNTIME,
        "factory": "vm_cache_endpoint",
        "image": "image_request_timeout provision service_offload",
        "proxy.kata": "enable_debug path",
        "shim.kata": "enable_debug enable_tracing path",
        "agent.kata": _AGENT,
    }.items()
}
"""By section; those of our own keys that Kata has too are not among them."""

OTHER_HYPERVISORS = tuple(
    f"hypervisor.{name}"
    for name in (
        *("acrn", "clh", "cloud-hypervisor", "dragonball", "firecracker", "nemu", "openvmm"),
        *("remote", "stratovirt"),
    )
)

FACTORY = "factory"
"""The section that is [hypervisor.qemu.factory] in files of the runtime in Rust."""

FAMILIES = ("agent", "hypervisor", "proxy", "shim")
"""Sections in two parts: [family.kind]."""

GUEST_DIRECTORY = "kata-containers"
"""What directories that hold Kata's guest, and its configuration, are called
(/usr/share/kata-containers, /opt/kata/share/kata-containers, /etc/kata-containers)."""
