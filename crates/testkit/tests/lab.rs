//! The lab itself: two machines and a cable, with a server that answers and ports that refuse.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use portolan_testkit::{Dial, Echo, Netns, Outcome, Transport, cable, require_root, say};

fn address(text: &str) -> SocketAddr {
    text.parse().expect("an address and port")
}

#[test]
fn two_machines_talk_over_a_cable() {
    require_root!();
    let (left, right) = (Netns::new(), Netns::new());
    cable((&left, "eth0"), (&right, "eth0"));
    for (netns, net) in [(&left, "10.0.0.1/24"), (&left, "fd00::1/64"), (&right, "10.0.0.2/24"), (&right, "fd00::2/64")]
    {
        netns.address("eth0", net.parse().unwrap());
    }
    let echo = Echo::start(&right, "right", &[address("10.0.0.2:80"), address("[fd00::2]:80")]);
    for (to, source) in [("10.0.0.2:80", "10.0.0.1"), ("[fd00::2]:80", "fd00::1")] {
        let seen_as: IpAddr = source.parse().unwrap();
        let answered = Outcome::Answered { by: "right".into(), at: 80, seen_as };
        assert_eq!(left.run(|| Dial::tcp(address(to)).once()), answered);
        assert_eq!(left.run(|| Dial::udp(address(to)).once()), answered);
        assert_eq!(left.run(|| Dial::new(Transport::Sctp, address(to)).once()), answered);
        assert_eq!(left.run(|| Dial::new(Transport::Ping, address(to)).once()), Outcome::Echoed);
    }
    assert_eq!(left.run(|| Dial::tcp(address("10.0.0.2:81")).once()), Outcome::Refused);
    assert_eq!(left.run(|| Dial::udp(address("10.0.0.2:81")).once()), Outcome::Refused);
    assert_eq!(left.run(|| Dial::udp(address("10.9.9.9:81")).once()), Outcome::Unreachable);
    left.route("10.9.9.0/24".parse().unwrap(), "10.0.0.2".parse().unwrap(), "eth0");
    let impatient = Dial::udp(address("10.9.9.9:81")).patience(Duration::from_millis(100));
    assert_eq!(left.run(|| impatient.once()), Outcome::Silent);

    let stream = left.run(|| Dial::tcp(address("10.0.0.2:80")).open().unwrap());
    assert_eq!(Outcome::greeting(&stream).by(), Some("right"));
    assert!(say(&stream, "still there?"));
    drop(echo);
    assert!(!say(&stream, "and now?"));
}
