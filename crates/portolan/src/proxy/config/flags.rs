//! Flags as kube-proxy has them -> the fields of a KubeProxyConfiguration that they stand for.
//!
//! So there is one place that knows what a setting means, whichever way it was given. Flags are not typed here: what
//! reads the fields says what is wrong with a value, and calls the field by its flag.
//!
//! Source: Kubernetes `cmd/kube-proxy/app/options.go` and `options_linux.go`.

use std::collections::BTreeMap;

use clap::{Arg, ArgAction, ArgMatches, Command};
use serde_json::{Map, Value};

/// How a flag's text becomes a field's value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Text,
    Number,
    /// Given alone, it means true.
    Bool,
    /// Separated by commas, or the flag repeated.
    List,
    /// Empty means off.
    Address,
    /// `name=true`, separated by commas.
    Gates,
}

struct Flag {
    name: &'static str,
    /// The field it stands for.
    path: &'static str,
    form: Form,
    help: &'static str,
}

const fn flag(name: &'static str, path: &'static str, form: Form, help: &'static str) -> Flag {
    Flag { name, path, form, help }
}

/// Those that do something; the rest is in [`ACCEPTED`].
const FLAGS: &[Flag] = &[
    flag(
        "kubeconfig",
        "clientConnection.kubeconfig",
        Form::Text,
        "How to reach the API server; without it, a pod's service account",
    ),
    flag("cluster-cidr", "clusterCIDR", Form::Text, "The pods' networks, one of each family, separated by a comma"),
    flag(
        "detect-local-mode",
        "detectLocalMode",
        Form::Text,
        "How to tell pods' traffic: ClusterCIDR, NodeCIDR, BridgeInterface or InterfaceNamePrefix",
    ),
    flag(
        "pod-bridge-interface",
        "detectLocal.bridgeInterface",
        Form::Text,
        "The bridge that pods are on, for BridgeInterface",
    ),
    flag(
        "pod-interface-name-prefix",
        "detectLocal.interfaceNamePrefix",
        Form::Text,
        "How the names of the pods' links begin, for InterfaceNamePrefix",
    ),
    flag("masquerade-all", "nftables.masqueradeAll", Form::Bool, "Give all traffic to ClusterIPs the node's address"),
    flag(
        "iptables-masquerade-bit",
        "nftables.masqueradeBit",
        Form::Number,
        "The bit of the packet mark that asks for the node's address [default: 14]",
    ),
    flag(
        "nodeport-addresses",
        "nodePortAddresses",
        Form::List,
        "Where NodePorts answer: networks, or primary [default: primary]",
    ),
    flag(
        "healthz-bind-address",
        "healthzBindAddress",
        Form::Address,
        "Where /healthz and /livez answer [default: 0.0.0.0:10256]; empty for nowhere",
    ),
    flag(
        "metrics-bind-address",
        "metricsBindAddress",
        Form::Address,
        "Where /metrics answers [default: 127.0.0.1:10249]; empty for nowhere",
    ),
    flag("bind-address", "bindAddress", Form::Text, "Of which family the addresses above are by default"),
    flag("bind-address-hard-fail", "bindAddressHardFail", Form::Bool, "End if one of these addresses cannot be had"),
    flag(
        "proxy-mode",
        "mode",
        Form::Text,
        "Accepted for the configurations that people have; there is one mode, and it is nftables",
    ),
    flag(
        "iptables-sync-period",
        "nftables.syncPeriod",
        Form::Text,
        "How often to look for changes that others made in the kernel [default: 30s]",
    ),
    flag(
        "conntrack-max-per-core",
        "conntrack.maxPerCore",
        Form::Number,
        "Connections to track for each CPU [default: 32768]; 0 to leave it as it is",
    ),
    flag("conntrack-min", "conntrack.min", Form::Number, "Connections to track at least [default: 131072]"),
    flag(
        "conntrack-tcp-timeout-established",
        "conntrack.tcpEstablishedTimeout",
        Form::Text,
        "Of idle TCP connections [default: 24h]; 0 to leave it as it is",
    ),
    flag(
        "conntrack-tcp-timeout-close-wait",
        "conntrack.tcpCloseWaitTimeout",
        Form::Text,
        "Of TCP connections half closed [default: 1h]; 0 to leave it as it is",
    ),
    flag(
        "conntrack-tcp-be-liberal",
        "conntrack.tcpBeLiberal",
        Form::Bool,
        "Do not drop TCP packets for being out of the window",
    ),
    flag(
        "conntrack-udp-timeout",
        "conntrack.udpTimeout",
        Form::Text,
        "Of UDP flows without an answer; 0 to leave it as it is",
    ),
    flag(
        "conntrack-udp-timeout-stream",
        "conntrack.udpStreamTimeout",
        Form::Text,
        "Of UDP flows with answers; 0 to leave it as it is",
    ),
    flag(
        "oom-score-adj",
        "oomScoreAdj",
        Form::Number,
        "How much to be spared when memory runs out, -1000 to 1000 [default: -999]",
    ),
];

/// Known, so that nobody's command line has to change, and hidden, because they do nothing or are deprecated.
const ACCEPTED: &[Flag] = &[
    flag("feature-gates", "featureGates", Form::Gates, ""),
    flag("healthz-port", "healthzPort", Form::Number, ""),
    flag("metrics-port", "metricsPort", Form::Number, ""),
    flag("kube-api-content-type", "clientConnection.contentType", Form::Text, ""),
    flag("kube-api-burst", "clientConnection.burst", Form::Number, ""),
    flag("kube-api-qps", "clientConnection.qps", Form::Number, ""),
    flag("profiling", "enableProfiling", Form::Bool, ""),
    flag("show-hidden-metrics-for-version", "showHiddenMetricsForVersion", Form::Text, ""),
    flag("config-sync-period", "configSyncPeriod", Form::Text, ""),
    flag("iptables-min-sync-period", "nftables.minSyncPeriod", Form::Text, ""),
    flag("iptables-localhost-nodeports", "iptables.localhostNodePorts", Form::Bool, ""),
    flag("ipvs-sync-period", "ipvs.syncPeriod", Form::Text, ""),
    flag("ipvs-min-sync-period", "ipvs.minSyncPeriod", Form::Text, ""),
    flag("ipvs-scheduler", "ipvs.scheduler", Form::Text, ""),
    flag("ipvs-exclude-cidrs", "ipvs.excludeCIDRs", Form::List, ""),
    flag("ipvs-strict-arp", "ipvs.strictARP", Form::Bool, ""),
    flag("ipvs-tcp-timeout", "ipvs.tcpTimeout", Form::Text, ""),
    flag("ipvs-tcpfin-timeout", "ipvs.tcpFinTimeout", Form::Text, ""),
    flag("ipvs-udp-timeout", "ipvs.udpTimeout", Form::Text, ""),
    flag("v", "logging.verbosity", Form::Number, ""),
    flag("vmodule", "logging.vmodule", Form::Text, ""),
    flag("logging-format", "logging.format", Form::Text, ""),
    flag("log-flush-frequency", "logging.flushFrequency", Form::Text, ""),
    flag("log-json-info-buffer-size", "logging.options.json.infoBufferSize", Form::Text, ""),
    flag("log-json-split-stream", "logging.options.json.splitStream", Form::Bool, ""),
    flag("log-text-info-buffer-size", "logging.options.text.infoBufferSize", Form::Text, ""),
    flag("log-text-split-stream", "logging.options.text.splitStream", Form::Bool, ""),
];

/// The flags that were given.
#[derive(Clone, Debug, Default)]
pub(crate) struct Flags(BTreeMap<&'static str, Vec<String>>);

impl Flags {
    /// The settings by themselves, and which flag sets which.
    pub(super) fn settings(&self) -> (Map<String, Value>, BTreeMap<String, String>) {
        let (mut settings, mut names) = (Map::new(), BTreeMap::new());
        for flag in all() {
            names.insert(flag.path.to_owned(), format!("--{}", flag.name));
            let Some(texts) = self.0.get(flag.name) else { continue };
            let mut parts: Vec<&str> = flag.path.split('.').collect();
            let last = parts.pop().unwrap_or_default();
            let mut section = &mut settings;
            for part in parts {
                let inner = section.entry(part).or_insert_with(|| Value::Object(Map::new()));
                let Value::Object(inner) = inner else { unreachable!("no flag's path is inside another's") };
                section = inner;
            }
            section.insert(last.to_owned(), value(flag.form, texts));
        }
        (settings, names)
    }

    /// What was given besides these, for a configuration file that leaves them without effect.
    pub(super) fn given_besides(&self, heeded: &[&str]) -> Vec<String> {
        self.0.keys().filter(|name| !heeded.contains(name)).map(|name| format!("--{name}")).collect()
    }

    pub(super) fn kubeconfig(&self) -> Option<&str> {
        self.0.get("kubeconfig").and_then(|texts| texts.last()).map(String::as_str)
    }
}

fn all() -> impl Iterator<Item = &'static Flag> {
    FLAGS.iter().chain(ACCEPTED)
}

fn value(form: Form, texts: &[String]) -> Value {
    let last = texts.last().map(String::as_str).unwrap_or_default();
    let text = || Value::String(last.to_owned());
    let listed = || texts.iter().flat_map(|text| text.split(',')).map(str::trim).filter(|text| !text.is_empty());
    match form {
        Form::Text => text(),
        // What cannot be read stays as it is, to be complained about.
        Form::Number => last
            .parse::<i64>()
            .map(Value::from)
            .or_else(|_| last.parse::<f64>().map(Value::from))
            .unwrap_or_else(|_| text()),
        Form::Bool => match last {
            "" | "true" | "1" | "t" | "T" | "TRUE" | "True" => Value::Bool(true),
            "false" | "0" | "f" | "F" | "FALSE" | "False" => Value::Bool(false),
            _ => text(),
        },
        Form::List => Value::Array(listed().map(Value::from).collect()),
        Form::Address if last.is_empty() => Value::Bool(false),
        Form::Address => text(),
        Form::Gates => {
            let gates = listed().map(|gate| gate.split_once('=').unwrap_or((gate, "true")));
            Value::Object(gates.map(|(name, on)| (name.to_owned(), Value::Bool(on == "true"))).collect())
        }
    }
}

impl clap::Args for Flags {
    fn augment_args(command: Command) -> Command {
        let argument = |flag: &'static Flag| {
            let argument = Arg::new(flag.name).long(flag.name).action(ArgAction::Append).allow_hyphen_values(true);
            let argument = if flag.name == "v" { argument.short('v') } else { argument };
            let argument = argument.value_name(match flag.form {
                Form::Text => "TEXT",
                Form::Number => "NUMBER",
                Form::Bool => "true|false",
                Form::List => "LIST",
                Form::Address => "ADDRESS:PORT",
                Form::Gates => "GATES",
            });
            if flag.form == Form::Bool {
                argument.num_args(0..=1).require_equals(true).default_missing_value("true")
            } else {
                argument
            }
        };
        let command = command.args(FLAGS.iter().map(|flag| argument(flag).help(flag.help)));
        command.args(ACCEPTED.iter().map(|flag| argument(flag).hide(true)))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl clap::FromArgMatches for Flags {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut flags = Self::default();
        flags.update_from_arg_matches(matches)?;
        Ok(flags)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        for flag in all() {
            if let Some(texts) = matches.get_many::<String>(flag.name) {
                self.0.insert(flag.name, texts.cloned().collect());
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use clap::{Args, FromArgMatches};
    use serde_json::json;

    use super::*;

    fn settings(arguments: &[&str]) -> Value {
        let command = Flags::augment_args(Command::new("proxy").no_binary_name(true));
        let matches = command.try_get_matches_from(arguments).unwrap_or_else(|error| panic!("{error}"));
        Value::Object(Flags::from_arg_matches(&matches).unwrap().settings().0)
    }

    #[test]
    fn every_way_to_write_a_flag() {
        assert_eq!(
            settings(&["--masquerade-all", "--cluster-cidr=10.0.0.0/8", "-v=2", "--conntrack-min", "0"]),
            json!({"nftables": {"masqueradeAll": true}, "clusterCIDR": "10.0.0.0/8", "logging": {"verbosity": 2},
                "conntrack": {"min": 0}})
        );
        assert_eq!(
            settings(&["--masquerade-all=false", "--nodeport-addresses=10.0.0.0/8,fd00::/8", "--oom-score-adj=-998"]),
            json!({"nftables": {"masqueradeAll": false}, "nodePortAddresses": ["10.0.0.0/8", "fd00::/8"],
                "oomScoreAdj": -998})
        );
        assert_eq!(
            settings(&["--metrics-bind-address=", "--feature-gates=A=true,B=false", "--v", "4"]),
            json!({"metricsBindAddress": false, "featureGates": {"A": true, "B": false}, "logging": {"verbosity": 4}})
        );
        assert_eq!(settings(&["--conntrack-min=many"]), json!({"conntrack": {"min": "many"}}));
    }

    #[test]
    fn no_flag_twice_and_no_field_twice() {
        let mut names: Vec<_> = all().map(|flag| flag.name).collect();
        let mut paths: Vec<_> = all().map(|flag| flag.path).collect();
        for list in [&mut names, &mut paths] {
            list.sort_unstable();
            assert!(list.windows(2).all(|pair| pair[0] != pair[1]), "{list:?}");
        }
    }
}
