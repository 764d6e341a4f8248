//! The chains that a packet comes by, hook after hook.

use std::net::IpAddr;

use nlink::netlink::nftables::{SetKeyType, Verdict};

use super::machine::{Act, Applied, Machine};
use super::table::{Base, Chain, Table};
use super::{End, Outcome, Packet, Step, Trace, text};

const PREROUTING: u32 = 0;
const INPUT: u32 = 1;
const FORWARD: u32 = 2;
const OUTPUT: u32 = 3;
const POSTROUTING: u32 = 4;

/// As deep as the kernel lets chains call each other.
const DEEPEST: usize = 16;

/// What the table does with the first packet of a connection, on a node that has these addresses.
#[must_use]
pub fn walk(table: &Table, own_addresses: &[IpAddr], packet: &Packet) -> Trace {
    let mut first = Walk::new(table, own_addresses, packet, 0);
    let outcome = first.run();
    let of = first.machine.of;
    let mut trace = Trace { steps: first.steps, ends: Vec::new(), unknown: first.machine.unknown };
    count(&mut trace.ends, End { ways: 1, of, outcome, element: first.machine.chosen });
    for choice in 1..of {
        let mut walk = Walk::new(table, own_addresses, packet, choice);
        let outcome = walk.run();
        count(&mut trace.ends, End { ways: 1, of, outcome, element: walk.machine.chosen });
        trace.unknown.extend(walk.machine.unknown);
    }
    trace.unknown.sort();
    trace.unknown.dedup();
    trace
}

/// Ends that are the same in every respect count together.
fn count(ends: &mut Vec<End>, end: End) {
    match ends.last_mut().filter(|last| (&last.outcome, &last.element) == (&end.outcome, &end.element)) {
        Some(last) => last.ways += end.ways,
        None => ends.push(end),
    }
}

struct Walk<'a> {
    table: &'a Table,
    machine: Machine<'a>,
    hook: String,
    steps: Vec<Step>,
    /// What the latest rule said that had the source address replaced.
    reason: String,
}

/// How a chain ended.
enum Left {
    /// At its end, or by `return`.
    Behind,
    /// This hook is done with the packet.
    Accepted,
    Dropped,
    Refused,
}

impl<'a> Walk<'a> {
    fn new(table: &'a Table, own_addresses: &'a [IpAddr], packet: &'a Packet, choice: u32) -> Self {
        let machine = Machine::new(table, own_addresses, packet, choice);
        Self { table, machine, hook: String::new(), steps: Vec::new(), reason: String::new() }
    }

    fn run(&mut self) -> Outcome {
        let from_here = self.machine.original.interface.is_none();
        let first = if from_here { OUTPUT } else { PREROUTING };
        if let Some(outcome) = self.pass(first) {
            return outcome;
        }
        // What comes from elsewhere and is for this node does not leave it again.
        let stays = !from_here && self.machine.is_own(self.machine.destination.ip());
        let rest: &[u32] = match (from_here, stays) {
            (true, _) => &[POSTROUTING],
            (false, true) => &[INPUT],
            (false, false) => &[FORWARD, POSTROUTING],
        };
        if let Some(outcome) = rest.iter().find_map(|hook| self.pass(*hook)) {
            return outcome;
        }
        match self.machine.rewritten {
            true => Outcome::To { backend: self.machine.destination, masqueraded: self.machine.masqueraded.clone() },
            false => Outcome::Passed,
        }
    }

    /// All chains of a hook, in the order of their priorities.
    fn pass(&mut self, hook: u32) -> Option<Outcome> {
        let table = self.table;
        let at = |chain: &'a Chain| chain.base.as_ref().filter(|base| base.hook == hook);
        let mut bases: Vec<(&Base, &str, &Chain)> = table
            .chains
            .iter()
            .filter_map(|(name, chain)| at(chain).map(|base| (base, name.as_str(), chain)))
            .collect();
        bases.sort_by_key(|(base, ..)| base.priority);
        for (base, name, chain) in bases {
            let kind = if base.nat { "nat" } else { "filter" };
            self.hook = format!("{kind} {}", hook_name(hook));
            match self.chain(name, chain, 0) {
                Left::Behind if base.drops => return Some(Outcome::Dropped),
                Left::Behind | Left::Accepted => {}
                Left::Dropped => return Some(Outcome::Dropped),
                Left::Refused => return Some(Outcome::Refused),
            }
        }
        None
    }

    fn chain(&mut self, name: &str, chain: &'a Chain, depth: usize) -> Left {
        for rule in &chain.rules {
            let Applied::Yes(acts) = self.machine.apply(rule) else { continue };
            // Cleaning up after itself is nothing to tell.
            if acts.iter().all(|act| matches!(act, Act::Priority(_))) {
                continue;
            }
            let said = if rule.comment.is_empty() { self.reason.clone() } else { rule.comment.clone() };
            let mut step = Step {
                hook: self.hook.clone(),
                chain: name.to_owned(),
                comment: rule.comment.clone(),
                rule: rule.text.clone(),
                elements: Vec::new(),
                effect: String::new(),
            };
            let mut left = None;
            let mut calls = None;
            for act in acts {
                let effect = match act {
                    Act::Looked(element) => {
                        step.elements.push(element);
                        continue;
                    }
                    Act::Verdict(verdict) => {
                        let effect = text::verdict(&verdict);
                        match verdict {
                            Verdict::Accept => left = Some(Left::Accepted),
                            Verdict::Drop => left = Some(Left::Dropped),
                            Verdict::Return => left = Some(Left::Behind),
                            Verdict::JumpTo(to) => calls = Some((to.as_str().to_owned(), false)),
                            Verdict::GotoTo(to) => calls = Some((to.as_str().to_owned(), true)),
                            _ => {}
                        }
                        effect
                    }
                    Act::Refuse => {
                        left = Some(Left::Refused);
                        "reject".to_owned()
                    }
                    Act::Rewrite(to) => {
                        left = Some(Left::Accepted);
                        format!("dnat to {to}")
                    }
                    Act::Masquerade => {
                        left = Some(Left::Accepted);
                        let why = if step.elements.is_empty() { self.reason.clone() } else { said.clone() };
                        self.machine.masqueraded = Some(why);
                        "masquerade".to_owned()
                    }
                    Act::Mark(mark) => format!("meta mark set {mark:#010x}"),
                    Act::Priority(class) => {
                        format!("meta priority set {}", text::value(&SetKeyType::ClassId, &class.to_ne_bytes()))
                    }
                    Act::Remember(update) => update,
                };
                if !step.effect.is_empty() {
                    step.effect.push_str(", ");
                }
                step.effect.push_str(&effect);
            }
            // What only counts decides nothing.
            if step.effect.is_empty() {
                continue;
            }
            self.steps.push(step);
            if let Some((to, forever)) = calls {
                // Who calls the chain that marks says why.
                let outer = std::mem::replace(&mut self.reason, said);
                let marked_before = self.machine.mark();
                let ended = match self.table.chains.get(&to) {
                    Some(chain) if depth < DEEPEST => self.chain(&to, chain, depth + 1),
                    _ => {
                        self.machine.unknown.push(format!("chain {to}"));
                        Left::Behind
                    }
                };
                if self.machine.mark() == marked_before {
                    self.reason = outer;
                }
                match ended {
                    Left::Behind if forever => return Left::Behind,
                    Left::Behind => {}
                    ended => return ended,
                }
            }
            if let Some(left) = left {
                return left;
            }
        }
        Left::Behind
    }
}

fn hook_name(hook: u32) -> &'static str {
    match hook {
        PREROUTING => "prerouting",
        INPUT => "input",
        FORWARD => "forward",
        OUTPUT => "output",
        POSTROUTING => "postrouting",
        _ => "another hook",
    }
}
