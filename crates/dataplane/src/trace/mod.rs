//! The table `portolan` as a kernel has it, and a packet -> what that table does with it, step by step.
//!
//! Invariant: nothing here knows what the rules are meant to be. The rules are read back and carried out, expression by
//! expression, on the elements that are there; so it holds for a table that another build made or somebody changed, and
//! agrees with the data plane only because both are right. An expression it cannot carry out is named, never skipped in
//! silence.
//!
//! | module | |
//! |---|---|
//! | `table` | what is read back |
//! | `machine` | one rule, carried out |
//! | `walk` | the chains of the hooks that a packet comes by |
//! | `text` | keys and values as `nft` prints them |
//!
//! Deliberately not here: other tables, routing beyond whether an address is the node's own, and packets after a
//! connection's first.
//!
//! Source: kernel `nf_tables_core.c`, `nft_lookup.c`, `nft_nat.c`, `nf_nat_core.c`.

mod machine;
mod table;
mod text;
mod walk;

use std::fmt;
use std::net::{IpAddr, SocketAddr};

pub use table::Table;
pub use walk::walk;

/// The first packet of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    pub source: IpAddr,
    pub destination: IpAddr,
    /// As in the IP header.
    pub protocol: u8,
    /// The destination port; 0 where the protocol has none.
    pub port: u16,
    /// The name of the interface it arrives on; `None` for what the node sends itself.
    pub interface: Option<String>,
}

/// What becomes of a packet, and why.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Trace {
    /// The rules that decided something, in their order. Where a random number decides, those of its first value.
    pub steps: Vec<Step>,
    /// Every way it may end. The shares add up to 1.
    pub ends: Vec<End>,
    /// Expressions that were met and could not be carried out: what is said of the packet may be wrong.
    pub unknown: Vec<String>,
}

/// A rule that applied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// Such as `nat prerouting`.
    pub hook: String,
    pub chain: String,
    /// What the rule says it is for.
    pub comment: String,
    /// The rule as `nft` prints it; empty where that is not known.
    pub rule: String,
    /// What was looked up on the way, as `nft` writes it: `@masqueraded { 10.96.0.1 . tcp . 80 }`.
    pub elements: Vec<String>,
    /// What the rule did, as `nft` spells it: `goto pick`.
    pub effect: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct End {
    /// Of so many connections out of `of`.
    pub ways: u32,
    pub of: u32,
    pub outcome: Outcome,
    /// The element that decided, where there is more than one end.
    pub element: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Its destination is rewritten.
    To {
        backend: SocketAddr,
        /// Why its source address is replaced by the node's; `None` where it is kept.
        masqueraded: Option<String>,
    },
    /// The client is told so at once.
    Refused,
    Dropped,
    /// No rule concerns it.
    Passed,
}

impl fmt::Display for Trace {
    /// The steps, under the hooks they are in.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut hook = "";
        for step in &self.steps {
            if hook != step.hook {
                hook = &step.hook;
                writeln!(f, "  {hook}")?;
            }
            let comment = if step.comment.is_empty() { String::new() } else { format!("  # {}", step.comment) };
            match step.elements.as_slice() {
                [] if step.rule.is_empty() => writeln!(f, "    {}: {}{comment}", step.chain, step.effect)?,
                [] => writeln!(f, "    {}: {}{comment}", step.chain, step.rule)?,
                elements => {
                    writeln!(f, "    {}: {}", step.chain, elements.join(", "))?;
                    writeln!(f, "      -> {}{comment}", step.effect)?;
                }
            }
        }
        Ok(())
    }
}
