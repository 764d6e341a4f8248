//! The kernel -> how many clients session affinity remembers.
//!
//! Who is remembered only the kernel knows, and listing them would cost the more the more there are. A newer
//! kernel says how many elements a set has with the set itself; an older one does not, and then nobody is told.
//!
//! Source: kernel `nf_tables.h` (`NFTA_SET_COUNT`), netlink(7).

use nlink::netlink::message::NLM_F_REQUEST;
use nlink::netlink::{AttrIter, MessageBuilder, MessageIter, NetlinkSocket, Protocol};
use portolan_model::forwarding::Family;

use super::maps::{Map, TABLE, nf_family};
use crate::Error;

const NFNL_SUBSYS_NFTABLES: u16 = 10 << 8;
const NFT_MSG_NEWSET: u16 = NFNL_SUBSYS_NFTABLES | 9;
const NFT_MSG_GETSET: u16 = NFNL_SUBSYS_NFTABLES | 10;
const NFTA_SET_TABLE: u16 = 1;
const NFTA_SET_NAME: u16 = 2;
const NFTA_SET_COUNT: u16 = 20;
const NLMSG_ERROR: u16 = 2;
/// `struct nfgenmsg`.
const FAMILY_HEADER: usize = 4;

pub(super) struct Clients(NetlinkSocket);

impl Clients {
    /// Of the calling thread's network namespace.
    pub(super) fn open() -> Result<Self, Error> {
        let socket = NetlinkSocket::new(Protocol::Netfilter);
        socket.map(Self).map_err(|source| Error::Socket { what: "nftables", source: Box::new(source) })
    }

    /// `None` where the kernel does not say.
    pub(super) async fn count(&self, family: Family) -> Result<Option<u32>, Error> {
        let failed = |source| Error::Read { what: "the number of clients".to_owned(), source: Box::new(source) };
        let sequence = self.0.next_seq();
        let mut request = MessageBuilder::new(NFT_MSG_GETSET, NLM_F_REQUEST);
        request.append_bytes(&[nf_family(family) as u8, 0, 0, 0]);
        request.append_attr_str(NFTA_SET_TABLE, TABLE);
        request.append_attr_str(NFTA_SET_NAME, Map::Affinity.name());
        request.set_seq(sequence);
        request.set_pid(self.0.pid());
        self.0.send(&request.finish()).await.map_err(failed)?;
        loop {
            let answer = self.0.recv_msg().await.map_err(failed)?;
            for message in MessageIter::new(&answer) {
                let (header, body) = message.map_err(failed)?;
                match header.nlmsg_type {
                    // An answer to somebody who stopped waiting for it.
                    _ if header.nlmsg_seq != sequence => {}
                    NLMSG_ERROR => {
                        let errno = body.first_chunk().map_or(0, |errno| i32::from_ne_bytes(*errno));
                        return Err(failed(nlink::Error::from_errno(errno)));
                    }
                    NFT_MSG_NEWSET => return Ok(counted(body.get(FAMILY_HEADER..).unwrap_or_default())),
                    _ => {}
                }
            }
        }
    }
}

fn counted(attributes: &[u8]) -> Option<u32> {
    let (_, count) = AttrIter::new(attributes).find(|(kind, _)| *kind == NFTA_SET_COUNT)?;
    count.first_chunk().map(|count| u32::from_be_bytes(*count))
}
