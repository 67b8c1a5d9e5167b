//! systemd units: one template for all data nodes of a machine, one for its Sentinels.

use super::software::Software;
use super::{File, Place};
use crate::domain::node::Address;

/// Units and kernel settings for every machine. `restart_seconds` is how long a process that ended
/// stays down.
#[must_use]
pub fn systemd(software: &Software, sentinels: bool, restart_seconds: u64) -> Vec<File> {
    let mut files = vec![
        file(
            "systemd/redis@.service",
            unit(software, "data node", "redis.conf", "", restart_seconds),
        ),
        file("systemd/90-redis.conf", KERNEL.to_owned()),
    ];
    if sentinels {
        let sentinel = unit(software, "Sentinel", "sentinel.conf", " --sentinel", 1);
        files.push(file("systemd/redis-sentinel@.service", sentinel));
    }
    files
}

fn file(path: &str, content: String) -> File {
    File { path: path.to_owned(), node: None, content }
}

const KERNEL: &str = "\
# Install as /etc/sysctl.d/90-redis.conf, then: sysctl --system
# A fork must not fail because the kernel counts the memory twice.
vm.overcommit_memory = 1
# For tcp-backlog.
net.core.somaxconn = 1024
# Beside this, transparent huge pages should be off, since they make forks and latency worse:
#   echo never > /sys/kernel/mm/transparent_hugepage/enabled
";

fn unit(software: &Software, what: &str, conf: &str, flag: &str, restart_seconds: u64) -> String {
    // The places of a node on port %i, as the files of nodes name them.
    let place = |folder: fn(Place) -> String| {
        let any: Option<Address> = "0.0.0.0:6379".parse().ok();
        any.map(|node| folder(Place::machine(&node)).replace("6379", "%i")).unwrap_or_default()
    };
    let (config, data) = (place(|p| p.config), place(|p| p.data));
    let name = if flag.is_empty() { "redis" } else { "redis-sentinel" };
    let pause = if restart_seconds > 1 {
        "# Long enough for another node to take over first. A primary that came back sooner would be empty\n\
         # where nothing is kept on disk, or a replica that Sentinels take half a minute to see as one.\n"
    } else {
        ""
    };
    format!(
        "# Install as /etc/systemd/system/{name}@.service; one instance for each port:\n\
         #   install -d -o redis -g redis -m 0750 {config} {data}   (with the port for %i)\n\
         #   systemctl enable --now {name}@PORT\n\
         [Unit]\n\
         Description={} {what} on port %i\n\
         Wants=network-online.target\n\
         After=network-online.target\n\
         \n\
         [Service]\n\
         ExecStart=/usr/bin/{} {config}/{conf}{flag}\n\
         User=redis\n\
         Group=redis\n\
         UMask=0077\n\
         Restart=always\n\
         {pause}RestartSec={restart_seconds}\n\
         # A server that is told to end first waits for its replicas, and writes its files.\n\
         TimeoutStopSec=120\n\
         LimitNOFILE=65536\n\
         OOMScoreAdjust=-900\n\
         NoNewPrivileges=yes\n\
         ProtectSystem=strict\n\
         ProtectHome=yes\n\
         PrivateTmp=yes\n\
         ReadWritePaths={config} {data}\n\
         \n\
         [Install]\n\
         WantedBy=multi-user.target\n",
        software.title(),
        software.server(),
    )
}
