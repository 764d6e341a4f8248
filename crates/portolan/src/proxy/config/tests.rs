use clap::{Args, Command, FromArgMatches};
use expect_test::{Expect, expect};

use super::*;

const HEAD: &str = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n";

/// What kubeadm writes, with everything it has no opinion on written out as nothing.
const KUBEADM: &str = r#"
apiVersion: kubeproxy.config.k8s.io/v1alpha1
bindAddress: 0.0.0.0
bindAddressHardFail: false
clientConnection:
  acceptContentTypes: ""
  burst: 0
  contentType: ""
  kubeconfig: /var/lib/kube-proxy/kubeconfig.conf
  qps: 0
clusterCIDR: 10.244.0.0/16
configSyncPeriod: 0s
conntrack:
  maxPerCore: null
  min: null
  tcpBeLiberal: false
  tcpCloseWaitTimeout: null
  tcpEstablishedTimeout: null
  udpStreamTimeout: 0s
  udpTimeout: 0s
detectLocal:
  bridgeInterface: ""
  interfaceNamePrefix: ""
detectLocalMode: ""
enableProfiling: false
healthzBindAddress: ""
hostnameOverride: ""
iptables:
  localhostNodePorts: null
  masqueradeAll: false
  masqueradeBit: null
  minSyncPeriod: 0s
  syncPeriod: 0s
ipvs:
  excludeCIDRs: null
  minSyncPeriod: 0s
  scheduler: ""
  strictARP: false
  syncPeriod: 0s
  tcpFinTimeout: 0s
  tcpTimeout: 0s
  udpTimeout: 0s
kind: KubeProxyConfiguration
logging:
  flushFrequency: 0
  options:
    json:
      infoBufferSize: "0"
    text:
      infoBufferSize: "0"
  verbosity: 0
metricsBindAddress: ""
mode: ""
nftables:
  masqueradeAll: false
  masqueradeBit: null
  minSyncPeriod: 0s
  syncPeriod: 0s
nodePortAddresses: null
oomScoreAdj: null
portRange: ""
showHiddenMetricsForVersion: ""
winkernel:
  enableDSR: false
  forwardHealthCheckVip: false
  networkName: ""
  rootHnsEndpointName: ""
  sourceVip: ""
"#;

fn flags(arguments: &[&str]) -> Flags {
    let command = Flags::augment_args(Command::new("proxy").no_binary_name(true));
    Flags::from_arg_matches(&command.get_matches_from(arguments)).unwrap()
}

fn file(body: &str) -> Result<Configuration, Unusable> {
    from_file(&format!("{HEAD}{body}"), &Flags::default())
}

fn check(read: Result<Configuration, Unusable>, expected: &Expect) {
    let text = match read {
        Ok(configuration) => format!("{configuration:#?}\n"),
        Err(error) => format!("{error}\n"),
    };
    expected.assert_eq(&text);
}

/// What is warned of, or what is wrong.
fn told(read: Result<Configuration, Unusable>) -> String {
    read.map_or_else(|error| format!("error: {error}"), |configuration| configuration.warnings.join("\n"))
}

#[test]
fn the_file_that_kubeadm_writes_gives_the_defaults_and_no_warning() {
    check(
        from_file(KUBEADM, &Flags::default()),
        &expect![[r#"
            Configuration {
                node_name: None,
                kubeconfig: Some(
                    "/var/lib/kube-proxy/kubeconfig.conf",
                ),
                masquerade_all: false,
                masquerade_bit: 14,
                local: ClusterCidr(
                    [
                        10.244.0.0/16,
                    ],
                ),
                node_port_addresses: OfNode,
                sync_period: 30s,
                healthz: Some(
                    0.0.0.0:10256,
                ),
                metrics: Some(
                    127.0.0.1:10249,
                ),
                must_bind: false,
                conntrack: Conntrack {
                    max_per_core: Some(
                        32768,
                    ),
                    min: 131072,
                    tcp_established: Some(
                        86400s,
                    ),
                    tcp_close_wait: Some(
                        3600s,
                    ),
                    tcp_be_liberal: false,
                    udp: None,
                    udp_stream: None,
                },
                oom_score_adj: -999,
                warnings: [],
            }
        "#]],
    );
}

#[test]
fn an_empty_file_and_no_flags_are_the_same() {
    assert_eq!(file(""), from_flags(&Flags::default()));
}

#[test]
fn a_file_and_the_flags_that_say_the_same_are_the_same() {
    let by_file = file(
        "clientConnection: {kubeconfig: /k}\n\
         clusterCIDR: 10.0.0.0/8,fd00::/8\n\
         mode: nftables\n\
         nftables: {masqueradeAll: true, masqueradeBit: 15, syncPeriod: 1m}\n\
         nodePortAddresses: [192.0.2.0/24, 'fd00::/8']\n\
         healthzBindAddress: '[::]:1'\n\
         metricsBindAddress: 127.0.0.2\n\
         bindAddressHardFail: true\n\
         oomScoreAdj: -5\n\
         conntrack: {maxPerCore: 0, min: 7, tcpEstablishedTimeout: 2h, tcpCloseWaitTimeout: 0s, tcpBeLiberal: true,\n\
         \x20 udpTimeout: 10s, udpStreamTimeout: 3m}\n",
    );
    let by_flags = from_flags(&flags(&[
        "--kubeconfig=/k",
        "--cluster-cidr=10.0.0.0/8,fd00::/8",
        "--proxy-mode=nftables",
        "--masquerade-all",
        "--iptables-masquerade-bit=15",
        "--iptables-sync-period=1m",
        "--nodeport-addresses=192.0.2.0/24,fd00::/8",
        "--healthz-bind-address=[::]:1",
        "--metrics-bind-address=127.0.0.2",
        "--bind-address-hard-fail",
        "--oom-score-adj=-5",
        "--conntrack-max-per-core=0",
        "--conntrack-min=7",
        "--conntrack-tcp-timeout-established=2h",
        "--conntrack-tcp-timeout-close-wait=0s",
        "--conntrack-tcp-be-liberal",
        "--conntrack-udp-timeout=10s",
        "--conntrack-udp-timeout-stream=3m",
    ]));
    assert_eq!(by_file, by_flags);
    check(
        by_flags,
        &expect![[r#"
            Configuration {
                node_name: None,
                kubeconfig: Some(
                    "/k",
                ),
                masquerade_all: true,
                masquerade_bit: 15,
                local: ClusterCidr(
                    [
                        10.0.0.0/8,
                        fd00::/8,
                    ],
                ),
                node_port_addresses: In(
                    [
                        192.0.2.0/24,
                        fd00::/8,
                    ],
                ),
                sync_period: 60s,
                healthz: Some(
                    [::]:1,
                ),
                metrics: Some(
                    127.0.0.2:10249,
                ),
                must_bind: true,
                conntrack: Conntrack {
                    max_per_core: None,
                    min: 7,
                    tcp_established: Some(
                        7200s,
                    ),
                    tcp_close_wait: None,
                    tcp_be_liberal: true,
                    udp: Some(
                        10s,
                    ),
                    udp_stream: Some(
                        180s,
                    ),
                },
                oom_score_adj: -5,
                warnings: [],
            }
        "#]],
    );
}

#[test]
fn everything_that_is_wrong_is_told_at_once() {
    check(
        file(
            "mode: userspace\n\
             nftables: {masqueradeBit: 40, syncPeriod: soon, masqueradeAll: 'yes'}\n\
             clusterCIDR: 10.0.0.0/8,10.1.0.0/16\n\
             detectLocalMode: Magic\n\
             nodePortAddresses: [everywhere]\n\
             healthzBindAddress: localhost:10256\n\
             bindAddress: nowhere\n\
             oomScoreAdj: 2000\n\
             conntrack: {min: -1, tcpEstablishedTimeout: -5s}\n\
             ipvs: 7\n",
        ),
        &expect![[r#"
            mode: "userspace" is none of nftables, iptables, ipvs
              nftables.masqueradeAll: "yes" is not true or false
              nftables.masqueradeBit: 40 is not a whole number from 0 to 31
              nftables.syncPeriod: "soon" is not a duration of 0 or more, as in 30s, 1m or 2h22m
              ipvs: 7 is not an object
              clusterCIDR: "10.0.0.0/8,10.1.0.0/16" is neither one network nor one of each family, as in 10.244.0.0/16,fd00:10:244::/56
              detectLocalMode: "Magic" is none of ClusterCIDR, NodeCIDR, BridgeInterface, InterfaceNamePrefix
              nodePortAddresses: "everywhere" is no network, as in 192.0.2.0/24; give networks, or all, or primary alone
              bindAddress: "nowhere" is no IP address
              healthzBindAddress: "localhost:10256" is no address with a port, as in 0.0.0.0:10256
              conntrack.min: -1 is not a whole number from 0 to 2147483647
              conntrack.tcpEstablishedTimeout: "-5s" is not a duration of 0 or more, as in 30s, 1m or 2h22m
              oomScoreAdj: 2000 is not a whole number from -1000 to 1000
        "#]],
    );
}

#[test]
fn what_does_not_apply_is_named_once() {
    expect![[r#"
        mode: rules are nftables rules, whatever the mode is called; unlike with ipvs, NodePorts answer on the node's primary addresses unless nodePortAddresses says otherwise, and never on localhost
        iptables.minSyncPeriod: does not apply: every change is written when it arrives
        iptables.localhostNodePorts: does not apply: NodePorts do not answer on localhost
        ipvs.scheduler: does not apply: there is no IPVS here
        ipvs.strictARP: does not apply: there is no IPVS here
        nodePortAddresses: localhost does not apply: NodePorts do not answer there
        bindAddress: does not apply: a node's addresses are those of its Node object
        clientConnection.qps: does not apply: there are a few watches and now and then an Event, nothing to hold back
        logging: does not apply: RUST_LOG says what is logged, as in RUST_LOG=debug
        featureGates: does not apply: nothing here is behind a gate
        winkernel: does not apply: this runs on Linux
        KubeProxyConfiguration has no such fields, and they are ignored: nftables.colour, nodeportAddresses (did you mean nodePortAddresses?)"#]]
    .assert_eq(&told(file(
        "mode: ipvs\n\
         ipvs: {scheduler: lc, strictARP: true}\n\
         iptables: {localhostNodePorts: true, minSyncPeriod: 1s}\n\
         featureGates: {A: true}\n\
         logging: {verbosity: 4}\n\
         bindAddress: 192.0.2.1\n\
         clientConnection: {qps: 5.5}\n\
         winkernel: {enableDSR: true}\n\
         nodePortAddresses: [localhost, 10.0.0.0/8, 'fd00::/8']\n\
         nodeportAddresses: [primary]\n\
         nftables: {colour: red}\n",
    )));
}

#[test]
fn flags_are_called_by_their_names() {
    expect![[r#"
        error: --iptables-masquerade-bit: 99 is not a whole number from 0 to 31
          --pod-bridge-interface: is empty, but the mode to detect local traffic needs it
          --conntrack-min: "many" is not a whole number from 0 to 2147483647"#]]
    .assert_eq(&told(from_flags(&flags(&[
        "--iptables-masquerade-bit=99",
        "--conntrack-min=many",
        "--detect-local-mode=BridgeInterface",
    ]))));
    expect![[r#"
        --proxy-mode: rules are nftables rules, whatever the mode is called; unlike with iptables, NodePorts answer on the node's primary addresses unless nodePortAddresses says otherwise, and never on localhost
        --ipvs-scheduler: does not apply: there is no IPVS here
        logging: does not apply: RUST_LOG says what is logged, as in RUST_LOG=debug"#]]
    .assert_eq(&told(from_flags(&flags(&["--ipvs-scheduler=rr", "-v=4", "--proxy-mode=iptables"]))));
}

#[test]
fn the_settings_of_the_mode_count() {
    let read = |mode: &str| {
        let configuration = file(&format!(
            "mode: '{mode}'\nnftables: {{masqueradeBit: 1}}\niptables: {{masqueradeBit: 2, masqueradeAll: true}}"
        ));
        let configuration = configuration.unwrap();
        (configuration.masquerade_bit, configuration.masquerade_all)
    };
    assert_eq!(read("nftables"), (1, false));
    assert_eq!(read("iptables"), (2, true));
    assert_eq!(read(""), (1, true));
    let by_flags = from_flags(&flags(&["--proxy-mode=iptables", "--masquerade-all", "--iptables-masquerade-bit=3"]));
    let by_flags = by_flags.unwrap();
    assert_eq!((by_flags.masquerade_bit, by_flags.masquerade_all), (3, true));
}

#[test]
fn local_traffic_is_told_in_four_ways() {
    let local = |body: &str| file(body).map(|configuration| configuration.local);
    let network = |text: &str| text.parse::<IpNet>().unwrap();
    for (body, expected) in [
        ("", LocalTraffic::ClusterCidr(Vec::new())),
        ("clusterCIDR: 10.1.2.3/8", LocalTraffic::ClusterCidr(vec![network("10.0.0.0/8")])),
        ("detectLocalMode: NodeCIDR", LocalTraffic::NodeCidr),
        (
            "{detectLocalMode: BridgeInterface, detectLocal: {bridgeInterface: cni0}}",
            LocalTraffic::BridgeInterface("cni0".to_owned()),
        ),
        (
            "{detectLocalMode: InterfaceNamePrefix, detectLocal: {interfaceNamePrefix: veth}}",
            LocalTraffic::InterfaceNamePrefix("veth".to_owned()),
        ),
    ] {
        let body = body.trim_matches(['{', '}']);
        let body = if body.contains("detectLocal:") { body.replacen(", ", "\n", 1) + "}" } else { body.to_owned() };
        assert_eq!(local(&body), Ok(expected), "{body}");
    }
}

#[test]
fn node_ports_answer_where_they_are_told_to() {
    let read = |list: &str| file(&format!("nodePortAddresses: {list}")).unwrap().node_port_addresses;
    assert_eq!(read("[primary]"), NodePortAddresses::OfNode);
    let networks = |list: &[&str]| NodePortAddresses::In(list.iter().map(|text| text.parse().unwrap()).collect());
    assert_eq!(read("[10.1.2.3/8, 'fd00::/8']"), networks(&["10.0.0.0/8", "fd00::/8"]));
    assert_eq!(read("[all]"), networks(&["0.0.0.0/0", "::/0"]));
    assert_eq!(read("[10.0.0.0/8]"), networks(&["10.0.0.0/8", "::/0"]), "as kube-proxy takes it");
    expect![[r#"
        nodePortAddresses: names no IPv6 network, so NodePorts answer on all of the node's IPv6 addresses, as with kube-proxy; add one to say where"#]]
    .assert_eq(&told(file("nodePortAddresses: [10.0.0.0/8]")));
}

#[test]
fn what_is_written_can_be_read_again() {
    for arguments in [
        &[][..],
        &["--cluster-cidr=10.244.0.0/16,fd00::/64", "--masquerade-all", "--iptables-masquerade-bit=3"],
        &["--detect-local-mode=BridgeInterface", "--pod-bridge-interface=cni0", "--kubeconfig=/k", "--oom-score-adj=0"],
        &["--detect-local-mode=NodeCIDR", "--nodeport-addresses=10.0.0.0/8,fd00::/8", "--iptables-sync-period=1500ms"],
        &["--conntrack-max-per-core=0", "--conntrack-udp-timeout=10s", "--conntrack-tcp-timeout-close-wait=0"],
        &["--healthz-port=1", "--metrics-bind-address=[::1]:2", "--bind-address-hard-fail"],
    ] {
        let configuration = from_flags(&flags(arguments)).unwrap();
        let text = write(&configuration).unwrap();
        assert_eq!(from_file(&text, &Flags::default()).unwrap(), configuration, "{text}");
    }
}

#[test]
fn servers_can_be_switched_off_by_flags() {
    let read = from_flags(&flags(&["--healthz-bind-address=", "--metrics-bind-address", ""])).unwrap();
    assert_eq!((read.healthz, read.metrics), (None, None));
    let read = from_flags(&flags(&["--healthz-port=0", "--metrics-port=9"])).unwrap();
    assert_eq!((read.healthz, read.metrics), (None, "127.0.0.1:9".parse().ok()));
    assert!(told(file("healthzPort: 9")).contains("no such fields"));
    let six = file("bindAddress: '::'").unwrap();
    assert_eq!((six.healthz, six.metrics), ("[::]:10256".parse().ok(), "[::1]:10249".parse().ok()));
}

#[test]
fn beside_a_file_flags_have_no_effect_and_that_is_said() {
    let text = format!("{HEAD}clusterCIDR: 10.0.0.0/8");
    let read =
        from_file(&text, &flags(&["--cluster-cidr=10.9.0.0/16", "--masquerade-all", "--kubeconfig=/k"])).unwrap();
    assert_eq!(read.local, LocalTraffic::ClusterCidr(vec!["10.0.0.0/8".parse().unwrap()]));
    assert_eq!(read.kubeconfig, Some("/k".into()), "the file is silent on it");
    assert_eq!(
        read.warnings,
        ["with a configuration file, these flags have no effect: --cluster-cidr, --masquerade-all"]
    );
}

#[test]
fn other_documents_are_refused() {
    for (text, expected) in [
        ("mode: nftables", "apiVersion is missing; this reads kubeproxy.config.k8s.io/v1alpha1"),
        (
            "apiVersion: kubeproxy.config.k8s.io/v1beta1\nkind: KubeProxyConfiguration",
            "apiVersion is \"kubeproxy.config.k8s.io/v1beta1\"; this reads kubeproxy.config.k8s.io/v1alpha1",
        ),
        (
            "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeletConfiguration",
            "kind is \"KubeletConfiguration\"; this reads KubeProxyConfiguration",
        ),
        ("[]", "it is no object; it has to begin with apiVersion: kubeproxy.config.k8s.io/v1alpha1"),
    ] {
        assert_eq!(from_file(text, &Flags::default()).unwrap_err().to_string(), expected);
    }
}
