//! What the kernel says of this process -> the metrics that every exporter has.
//!
//! Source: Prometheus, "Writing client libraries", standard and runtime collectors.

use nix::unistd::{SysconfVar, sysconf};

use crate::Page;

/// What the kernel says of this process. What it does not say is left out.
pub fn write_process(page: &mut Page) {
    let number = |variable| sysconf(variable).ok().flatten().and_then(|value| u32::try_from(value).ok());
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // The second field is the command's name, which may contain anything.
    let fields: Vec<f64> = stat
        .rsplit_once(") ")
        .map(|(_, rest)| rest.split(' ').map(|field| field.trim().parse().unwrap_or_default()).collect())
        .unwrap_or_default();
    if let (Some(user), Some(system), Some(ticks)) = (fields.get(11), fields.get(12), number(SysconfVar::CLK_TCK)) {
        page.family("process_cpu_seconds_total", "counter", "Total user and system CPU time spent in seconds");
        page.sample("process_cpu_seconds_total", &[], (user + system) / f64::from(ticks));
    }
    if let (Some(pages), Some(size)) = (fields.get(21), number(SysconfVar::PAGE_SIZE)) {
        page.family("process_resident_memory_bytes", "gauge", "Resident memory size in bytes");
        page.sample("process_resident_memory_bytes", &[], pages * f64::from(size));
    }
    if let Ok(files) = std::fs::read_dir("/proc/self/fd") {
        page.family("process_open_fds", "gauge", "Number of open file descriptors");
        page.count("process_open_fds", &[], files.count() as u64);
    }
}
