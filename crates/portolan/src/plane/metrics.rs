//! What the service plane did -> the metrics that people know from kube-proxy, and what only this one can say.
//!
//! Both families of a Service are written together, so a number with the label `ip_family` stands under both.
//!
//! Source: Kubernetes `pkg/proxy/metrics/metrics.go` for the names that begin with `kubeproxy_`, and Prometheus'
//! guidelines for those that begin with `process_`.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use portolan_dataplane::{FlowsEnded, Room, SetSize};
use portolan_exposition::{Histogram, Page};
use portolan_model::forwarding::Family;

use super::local::Local;

const FAMILIES: [&str; 2] = ["IPv4", "IPv6"];

/// What was asked of a server, by the status it answered with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Probe {
    Healthz,
    Livez,
}

/// One round of writing to the kernel.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Round {
    /// Every Service was looked at.
    pub(crate) full: bool,
    pub(crate) took: Duration,
    /// Elements deleted and inserted.
    pub(crate) operations: usize,
    pub(crate) refused: bool,
    pub(crate) ended: Timestamp,
}

#[derive(Debug)]
pub(crate) struct Metrics {
    started: Timestamp,
    rounds: Histogram,
    full_rounds: Histogram,
    partial_rounds: Histogram,
    programming: Histogram,
    last_queued: Option<Timestamp>,
    last_done: Option<Timestamp>,
    /// Changes seen, and of these the ones not in the kernel yet.
    services: (u64, u64),
    endpoints: (u64, u64),
    failures: u64,
    cleanup_failures: u64,
    probes: BTreeMap<(&'static str, u16), u64>,
    elements: usize,
    operations: u64,
    repaired: u64,
    /// Looks for flows that went where no Service leads any more, and how many were ended, by family.
    looks: Histogram,
    flows_ended: [u64; 2],
    /// Of the maps that have bounds.
    rooms: Vec<Room>,
    sizes: Vec<SetSize>,
    /// Services whose latest change the kernel did not take whole.
    refused: usize,
    /// Ports of Services that have endpoints, but none where the policy wants them.
    no_local: Local,
}

impl Metrics {
    pub(crate) fn new(started: Timestamp) -> Self {
        let rounds = || Histogram::exponential(0.001, 2.0, 15);
        let seconds = |from: u32, step: u32, count: u32| (0..count).map(move |i| f64::from(from + i * step));
        let programming = [0.25, 0.5].into_iter();
        let programming = programming.chain(seconds(1, 1, 59)).chain(seconds(60, 5, 12)).chain(seconds(120, 30, 7));
        Self {
            started,
            rounds: rounds(),
            full_rounds: rounds(),
            partial_rounds: rounds(),
            programming: Histogram::new(programming.collect()),
            last_queued: None,
            last_done: None,
            services: (0, 0),
            endpoints: (0, 0),
            failures: 0,
            cleanup_failures: 0,
            probes: BTreeMap::new(),
            elements: 0,
            operations: 0,
            repaired: 0,
            looks: rounds(),
            flows_ended: [0; 2],
            rooms: Vec::new(),
            sizes: Vec::new(),
            refused: 0,
            no_local: Local::default(),
        }
    }

    /// Changes arrived that are not in the kernel yet.
    pub(crate) fn queued(&mut self, services: u64, endpoints: u64, at: Timestamp) {
        for (seen, new) in [(&mut self.services, services), (&mut self.endpoints, endpoints)] {
            seen.0 += new;
            seen.1 += new;
        }
        self.last_queued = Some(at);
    }

    pub(crate) fn round(&mut self, round: Round) {
        let took = round.took.as_secs_f64();
        self.rounds.observe(took);
        if round.full { &mut self.full_rounds } else { &mut self.partial_rounds }.observe(took);
        self.operations += round.operations as u64;
        self.services.1 = 0;
        self.endpoints.1 = 0;
        if round.refused {
            self.failures += 1;
        } else {
            self.last_done = Some(round.ended);
        }
    }

    /// So long after it happened, a change of endpoints was in the kernel.
    pub(crate) fn programmed(&mut self, delay: Duration) {
        self.programming.observe(delay.as_secs_f64());
    }

    pub(crate) fn audited(&mut self, repaired: Option<usize>) {
        match repaired {
            Some(repaired) => self.repaired += repaired as u64,
            None => self.cleanup_failures += 1,
        }
    }

    pub(crate) fn holds(&mut self, elements: usize, no_local: Local) {
        self.elements = elements;
        self.no_local = no_local;
    }

    pub(crate) fn ended(&mut self, ended: &FlowsEnded) {
        ended.looks.iter().for_each(|look| self.looks.observe(look.as_secs_f64()));
        self.flows_ended.iter_mut().zip(ended.flows).for_each(|(sum, flows)| *sum += flows);
    }

    pub(crate) fn rooms(&mut self, rooms: Vec<Room>, sizes: Vec<SetSize>) {
        self.rooms = rooms;
        self.sizes = sizes;
    }

    pub(crate) fn refused(&mut self, services: usize) {
        self.refused = services;
    }

    pub(crate) fn probed(&mut self, probe: Probe, status: u16) {
        let name = match probe {
            Probe::Healthz => "kubeproxy_proxy_healthz_total",
            Probe::Livez => "kubeproxy_proxy_livez_total",
        };
        *self.probes.entry((name, status)).or_default() += 1;
    }

    pub(crate) fn write(&self, page: &mut Page) {
        let histograms = [
            ("sync_proxy_rules_duration_seconds", "SyncProxyRules latency in seconds", &self.rounds),
            (
                "sync_full_proxy_rules_duration_seconds",
                "SyncProxyRules latency in seconds for full resyncs",
                &self.full_rounds,
            ),
            (
                "sync_partial_proxy_rules_duration_seconds",
                "SyncProxyRules latency in seconds for partial resyncs",
                &self.partial_rounds,
            ),
            (
                "network_programming_duration_seconds",
                "In Cluster Network Programming Latency in seconds",
                &self.programming,
            ),
            (
                "conntrack_reconciler_sync_duration_seconds",
                "ReconcileConntrackFlowsLatency latency in seconds",
                &self.looks,
            ),
        ];
        for (name, help, histogram) in histograms {
            let name = format!("kubeproxy_{name}");
            page.family(&name, "histogram", help);
            for family in FAMILIES {
                page.histogram(&name, &[("ip_family", family)], histogram);
            }
        }
        let times = [
            (
                "sync_proxy_rules_last_timestamp_seconds",
                "The last time proxy rules were successfully synced",
                self.last_done,
            ),
            (
                "sync_proxy_rules_last_queued_timestamp_seconds",
                "The last time a sync of proxy rules was queued",
                self.last_queued,
            ),
        ];
        for (name, help, time) in times {
            let name = format!("kubeproxy_{name}");
            page.family(&name, "gauge", help);
            for family in FAMILIES {
                page.sample(&name, &[("ip_family", family)], time.map_or(0.0, seconds));
            }
        }
        let changes = [("endpoint", "Endpoint", self.endpoints), ("service", "Service", self.services)];
        for (what, word, (total, pending)) in changes {
            let name = format!("kubeproxy_sync_proxy_rules_{what}_changes_pending");
            page.family(&name, "gauge", &format!("Pending proxy rules {word} changes"));
            page.count(&name, &[], pending);
            let name = format!("kubeproxy_sync_proxy_rules_{what}_changes_total");
            page.family(&name, "counter", &format!("Cumulative proxy rules {word} changes"));
            page.count(&name, &[], total);
        }
        let name = "kubeproxy_sync_proxy_rules_no_local_endpoints_total";
        page.family(name, "gauge", "Number of services with a Local traffic policy and no endpoints");
        for (family, policy, ports) in self.no_local.rows() {
            page.count(name, &[("ip_family", family), ("traffic_policy", policy)], ports);
        }
        let failures = [("sync", self.failures), ("cleanup", self.cleanup_failures)];
        for (what, count) in failures {
            let name = format!("kubeproxy_sync_proxy_rules_nftables_{what}_failures_total");
            page.family(&name, "counter", &format!("Cumulative proxy nftables {what} failures"));
            for family in FAMILIES {
                page.count(&name, &[("ip_family", family)], count);
            }
        }
        let name = "kubeproxy_conntrack_reconciler_deleted_entries_total";
        page.family(name, "counter", "Cumulative conntrack flows deleted by conntrack reconciler");
        for (family, flows) in FAMILIES.iter().zip(self.flows_ended) {
            page.count(name, &[("ip_family", family)], flows);
        }
        for (name, what) in [("kubeproxy_proxy_healthz_total", "healthz"), ("kubeproxy_proxy_livez_total", "livez")] {
            page.family(name, "counter", &format!("Cumulative proxy {what} HTTP status"));
            for ((_, status), count) in self.probes.iter().filter(|((probe, _), _)| *probe == name) {
                page.count(name, &[("code", &status.to_string())], *count);
            }
        }
        page.family("portolan_kernel_elements", "gauge", "Map and set elements in place");
        page.count("portolan_kernel_elements", &[], self.elements as u64);
        page.family("portolan_kernel_operations_total", "counter", "Map and set elements deleted and inserted");
        page.count("portolan_kernel_operations_total", &[], self.operations);
        page.family("portolan_repaired_total", "counter", "Elements and chains that audits found changed by others");
        page.count("portolan_repaired_total", &[], self.repaired);
        let refused = "portolan_refused_services";
        page.family(refused, "gauge", "Services whose latest change the kernel did not take whole; it is tried again");
        page.count(refused, &[], self.refused as u64);
        page.family("portolan_map_elements", "gauge", "Elements in each map of the socket programs");
        for room in &self.rooms {
            page.count("portolan_map_elements", &[("map", room.map)], room.used as u64);
        }
        let help = "How many elements each map can have, but for those that make room by themselves";
        page.family("portolan_map_room", "gauge", help);
        for (map, room) in self.rooms.iter().filter_map(|room| Some((room.map, room.room?))) {
            page.count("portolan_map_room", &[("map", map)], room.into());
        }
        let name = "portolan_nft_elements";
        page.family(name, "gauge", "Elements in each map and set of nftables");
        let labels =
            |size: &SetSize| [("set", size.set), ("ip_family", FAMILIES[usize::from(size.family == Family::V6)])];
        for size in &self.sizes {
            page.count(name, &labels(size), size.elements as u64);
        }
        let name = "portolan_nft_room";
        page.family(name, "gauge", "How many elements a set can have, where something bounds it besides memory");
        for (size, room) in self.sizes.iter().filter_map(|size| Some((size, size.room?))) {
            page.count(name, &labels(size), room.into());
        }
        page.family("portolan_build_info", "gauge", "Which build this is");
        page.count("portolan_build_info", &[("version", env!("CARGO_PKG_VERSION"))], 1);
        page.family("process_start_time_seconds", "gauge", "Start time of the process since unix epoch in seconds");
        page.sample("process_start_time_seconds", &[], seconds(self.started));
    }
}

fn seconds(time: Timestamp) -> f64 {
    Duration::try_from(time.duration_since(Timestamp::UNIX_EPOCH)).unwrap_or_default().as_secs_f64()
}

#[cfg(test)]
mod tests {
    use portolan_exposition::write_process;

    use super::*;

    fn text(metrics: &Metrics) -> String {
        let mut page = Page::default();
        metrics.write(&mut page);
        page.into_text()
    }

    fn line<'a>(text: &'a str, name: &str) -> &'a str {
        text.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("no {name} in\n{text}"))
    }

    #[test]
    fn changes_are_pending_until_a_round_takes_them() {
        let mut metrics = Metrics::new(Timestamp::UNIX_EPOCH);
        let time = |second| Timestamp::from_second(second).unwrap();
        metrics.queued(2, 3, time(10));
        let shown = text(&metrics);
        assert!(line(&shown, "kubeproxy_sync_proxy_rules_endpoint_changes_pending").ends_with(" 3"));
        assert!(line(&shown, "kubeproxy_sync_proxy_rules_last_timestamp_seconds{ip_family=\"IPv6\"}").ends_with(" 0"));
        let took = Duration::from_millis(3);
        let round = Round { full: false, took, operations: 4, refused: false, ended: time(11) };
        metrics.round(round);
        let shown = text(&metrics);
        for (name, value) in [
            ("kubeproxy_sync_proxy_rules_endpoint_changes_pending", "0"),
            ("kubeproxy_sync_proxy_rules_endpoint_changes_total", "3"),
            ("kubeproxy_sync_proxy_rules_service_changes_total", "2"),
            ("kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds{ip_family=\"IPv4\"}", "10"),
            ("kubeproxy_sync_proxy_rules_last_timestamp_seconds{ip_family=\"IPv4\"}", "11"),
            ("kubeproxy_sync_proxy_rules_duration_seconds_bucket{ip_family=\"IPv4\",le=\"0.002\"}", "0"),
            ("kubeproxy_sync_proxy_rules_duration_seconds_bucket{ip_family=\"IPv4\",le=\"0.004\"}", "1"),
            ("kubeproxy_sync_partial_proxy_rules_duration_seconds_count{ip_family=\"IPv6\"}", "1"),
            ("kubeproxy_sync_full_proxy_rules_duration_seconds_count{ip_family=\"IPv4\"}", "0"),
            ("kubeproxy_network_programming_duration_seconds_bucket{ip_family=\"IPv4\",le=\"115\"}", "0"),
            ("kubeproxy_network_programming_duration_seconds_bucket{ip_family=\"IPv4\",le=\"300\"}", "0"),
            ("portolan_kernel_operations_total", "4"),
        ] {
            let line = line(&shown, name);
            assert_eq!(line.rsplit_once(' ').unwrap().1, value, "{line}");
        }
        metrics.round(Round { refused: true, ended: time(12), ..round });
        let shown = text(&metrics);
        assert!(line(&shown, "kubeproxy_sync_proxy_rules_last_timestamp_seconds").ends_with(" 11"));
        assert!(line(&shown, "kubeproxy_sync_proxy_rules_nftables_sync_failures_total").ends_with(" 1"));
    }

    #[test]
    fn a_map_that_makes_room_by_itself_is_never_near_full() {
        let mut metrics = Metrics::new(Timestamp::UNIX_EPOCH);
        let room = |map, used, room| Room { map, used, room };
        let size = |set, elements, room| SetSize { set, family: Family::V6, elements, room };
        let sizes = vec![size("services", 7, None), size("affinity", 3, Some(1_024))];
        metrics.rooms(vec![room("slots", 60, Some(64)), room("sessions", 64, None)], sizes);
        let looks = vec![Duration::from_millis(3)];
        metrics.ended(&FlowsEnded { flows: [2, 0], looks: looks.clone() });
        metrics.ended(&FlowsEnded { flows: [3, 1], looks });
        let shown = text(&metrics);
        for (name, value) in [
            ("portolan_map_elements{map=\"slots\"}", "60"),
            ("portolan_map_room{map=\"slots\"}", "64"),
            ("portolan_map_elements{map=\"sessions\"}", "64"),
            ("portolan_nft_elements{set=\"services\",ip_family=\"IPv6\"}", "7"),
            ("portolan_nft_elements{set=\"affinity\",ip_family=\"IPv6\"}", "3"),
            ("portolan_nft_room{set=\"affinity\",ip_family=\"IPv6\"}", "1024"),
            ("kubeproxy_conntrack_reconciler_deleted_entries_total{ip_family=\"IPv4\"}", "5"),
            ("kubeproxy_conntrack_reconciler_deleted_entries_total{ip_family=\"IPv6\"}", "1"),
            ("kubeproxy_conntrack_reconciler_sync_duration_seconds_count{ip_family=\"IPv4\"}", "2"),
        ] {
            let line = line(&shown, name);
            assert_eq!(line.rsplit_once(' ').unwrap().1, value, "{line}");
        }
        for name in ["portolan_map_room{map=\"sessions\"}", "portolan_nft_room{set=\"services\""] {
            assert!(!shown.contains(name), "{shown}");
        }
    }

    #[test]
    fn every_family_is_described_once_and_before_its_samples() {
        let mut metrics = Metrics::new(Timestamp::UNIX_EPOCH);
        metrics.probed(Probe::Healthz, 200);
        let mut page = Page::default();
        metrics.write(&mut page);
        write_process(&mut page);
        let text = page.into_text();
        let mut described = std::collections::BTreeSet::new();
        for line in text.lines() {
            if let Some(family) = line.strip_prefix("# TYPE ") {
                assert!(described.insert(family.split(' ').next().unwrap().to_owned()), "{line} twice");
            } else if !line.starts_with('#') {
                let name = line.split(['{', ' ']).next().unwrap();
                let base = ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end)).unwrap_or(name);
                assert!(described.contains(base) || described.contains(name), "{line} is not described");
            }
        }
        // What dashboards for kube-proxy ask for.
        let stock = "sync_proxy_rules_duration_seconds sync_full_proxy_rules_duration_seconds \
            sync_partial_proxy_rules_duration_seconds sync_proxy_rules_last_timestamp_seconds \
            sync_proxy_rules_last_queued_timestamp_seconds network_programming_duration_seconds \
            sync_proxy_rules_endpoint_changes_pending sync_proxy_rules_endpoint_changes_total \
            sync_proxy_rules_service_changes_pending sync_proxy_rules_service_changes_total \
            sync_proxy_rules_no_local_endpoints_total sync_proxy_rules_nftables_sync_failures_total \
            sync_proxy_rules_nftables_cleanup_failures_total proxy_healthz_total proxy_livez_total \
            conntrack_reconciler_sync_duration_seconds conntrack_reconciler_deleted_entries_total";
        for name in stock.split_whitespace() {
            assert!(described.contains(&format!("kubeproxy_{name}")), "{name}");
        }
        assert!(described.contains("process_resident_memory_bytes"), "{text}");
        assert_eq!(line(&text, "kubeproxy_proxy_healthz_total"), "kubeproxy_proxy_healthz_total{code=\"200\"} 1");
    }
}
