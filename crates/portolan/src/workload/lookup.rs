//! A name and a type -> what DNS says, record by record.
//!
//! Deliberately not here: a cache, and a fallback to TCP (a truncated answer is reported as such).
//! Source: RFC 1035; resolv.conf(5).

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::process::ExitCode;
use std::str::FromStr;
use std::time::Duration;

use anyhow::Context;
use hickory_proto::op::{Message, Query, ResponseCode};
use hickory_proto::rr::{Name, RecordType};
use serde::{Deserialize, Serialize};
use tokio::net::UdpSocket;
use tokio::time::timeout;

const RESOLV_CONF: &str = "/etc/resolv.conf";
const TRIES: u32 = 3;
const TRY_TIMEOUT: Duration = Duration::from_secs(1);

#[derive(Debug, clap::Args)]
pub(super) struct LookupArgs {
    /// The whole name; the search list is not used.
    name: String,
    #[arg(long = "type", default_value = "A")]
    record_type: String,
    /// Ask this server rather than the first in /etc/resolv.conf.
    #[arg(long)]
    server: Option<IpAddr>,
}

/// One answer, as printed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Found {
    pub(crate) name: String,
    pub(crate) rcode: String,
    pub(crate) truncated: bool,
    /// In the order of the message.
    pub(crate) answers: Vec<FoundRecord>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct FoundRecord {
    pub(crate) name: String,
    #[serde(rename = "type")]
    pub(crate) record_type: String,
    pub(crate) ttl: u32,
    pub(crate) data: String,
}

impl Found {
    /// The IPv4 addresses among the answers.
    pub(crate) fn addresses(&self) -> BTreeSet<String> {
        self.answers.iter().filter(|record| record.record_type == "A").map(|record| record.data.clone()).collect()
    }
}

pub(super) async fn run(args: LookupArgs) -> anyhow::Result<ExitCode> {
    let name = Name::from_str(&args.name).with_context(|| format!("{} is not a name", args.name))?;
    let record_type = RecordType::from_str(&args.record_type.to_uppercase())
        .with_context(|| format!("{} is not a record type", args.record_type))?;
    let server = match args.server {
        Some(server) => SocketAddr::new(server, 53),
        None => {
            let conf = std::fs::read_to_string(RESOLV_CONF).with_context(|| format!("cannot read {RESOLV_CONF}"))?;
            *portolan_dns::resolvers(&conf).first().with_context(|| format!("{RESOLV_CONF} names no server"))?
        }
    };
    let message = ask(server, &name, record_type).await?;
    let answers = message.answers.iter().map(|record| FoundRecord {
        name: record.name.to_string(),
        record_type: record.record_type().to_string(),
        ttl: record.ttl,
        data: record.data.to_string(),
    });
    let found = Found {
        name: args.name,
        rcode: message.metadata.response_code.to_string(),
        truncated: message.metadata.truncation,
        answers: answers.collect(),
    };
    println!("{}", serde_json::to_string(&found)?);
    Ok(if message.metadata.response_code == ResponseCode::NoError { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Asks over UDP until an answer to this very question comes.
async fn ask(server: SocketAddr, name: &Name, record_type: RecordType) -> anyhow::Result<Message> {
    let mut question = Message::query();
    question.metadata.recursion_desired = true;
    question.add_query(Query::query(name.clone(), record_type));
    let packet = question.to_vec().context("cannot write the question")?;
    let local: SocketAddr = if server.is_ipv6() { ([0u16; 8], 0).into() } else { ([0u8; 4], 0).into() };
    let socket = UdpSocket::bind(local).await.context("cannot open a socket")?;
    socket.connect(server).await.with_context(|| format!("cannot reach {server}"))?;
    let mut buffer = vec![0; 4096];
    for _ in 0..TRIES {
        socket.send(&packet).await.with_context(|| format!("cannot reach {server}"))?;
        let answer = async {
            loop {
                let length = socket.recv(&mut buffer).await?;
                if let Ok(answer) = Message::from_vec(&buffer[..length])
                    && answer.metadata.id == question.metadata.id
                {
                    return Ok::<_, std::io::Error>(answer);
                }
            }
        };
        match timeout(TRY_TIMEOUT, answer).await {
            Ok(answer) => return answer.with_context(|| format!("{server} does not answer DNS")),
            Err(_) => continue,
        }
    }
    anyhow::bail!("{server} did not answer {TRIES} times")
}

#[cfg(test)]
mod tests {
    use hickory_proto::rr::{RData, Record};

    use super::*;

    #[tokio::test]
    async fn an_answer_to_another_question_is_passed_over() {
        let server = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = server.local_addr().unwrap();
        let name = Name::from_str("web.default.svc.cluster.local.").unwrap();
        let answer = async {
            let mut buffer = [0; 512];
            let (length, peer) = server.recv_from(&mut buffer).await.unwrap();
            let question = Message::from_vec(&buffer[..length]).unwrap();
            let mut answer = question.clone().into_response();
            answer.add_answer(Record::from_rdata(
                question.queries[0].name().clone(),
                5,
                RData::A(std::net::Ipv4Addr::new(10, 96, 0, 7).into()),
            ));
            let mut forged = answer.clone();
            forged.metadata.id = !question.metadata.id;
            forged.metadata.response_code = ResponseCode::NXDomain;
            for message in [forged, answer] {
                server.send_to(&message.to_vec().unwrap(), peer).await.unwrap();
            }
            server.send_to(b"not DNS", peer).await.unwrap();
            std::future::pending::<()>().await;
        };
        let found = tokio::select! {
            found = ask(address, &name, RecordType::A) => found.unwrap(),
            () = answer => unreachable!("it is for ever"),
        };
        assert_eq!(found.metadata.response_code, ResponseCode::NoError);
        assert_eq!(found.answers[0].data.to_string(), "10.96.0.7");
    }
}
