//! The lower half: operations on entries -> netlink transactions, and the kernel's table -> entries.
//!
//! Invariants: [`Ruleset::commit`] is all or nothing; `read` sees every element of ours, also those that nobody here
//! wrote. The upper half knows the kernel by this trait only, so that its tests can refuse and lose things at will.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;

use nlink::netlink::nftables::{Chain as NfChain, Set, SetElement};
use nlink::netlink::{Connection, Nftables};
use portolan_model::forwarding::{Family, Frontend};

use super::clients::Clients;
use super::entries::{Chain, ChainKind, Entry, Key, chain_of};
use super::layout::{ChainPlan, dynamic_chain, fixed_chains};
use super::maps::{Map, TABLE, classes, nf_family};
use super::state::{Operations, State};
use super::wire;
use super::writer::{self, Writer};
use crate::traffic::Counts;
use crate::{Error, ProxyConfig};

pub(crate) trait Ruleset: Send {
    /// Everything there is, once what no entry could be is removed and the chains that entries lead to are there. Also
    /// says how much of that there was to do.
    fn read(&mut self) -> impl Future<Output = Result<(State, usize), Error>> + Send;
    fn commit(&mut self, operations: &Operations) -> impl Future<Output = Result<(), Error>> + Send;
    /// How many clients are remembered; `None` where the kernel does not say.
    fn clients(&mut self, family: Family) -> impl Future<Output = Result<Option<u32>, Error>> + Send;
    /// What the counters of each frontend are at.
    fn counted(&mut self) -> impl Future<Output = Result<BTreeMap<Frontend, Counts>, Error>> + Send;
    /// Whether anybody else has committed anything since the latest `read`. May say so wrongly, but not the reverse.
    fn is_touched(&mut self) -> impl Future<Output = bool> + Send;
    /// Puts maps and rules back as they should be; says whether someone had changed the rules.
    fn repair(&mut self) -> impl Future<Output = Result<bool, Error>> + Send;
}

/// The table in the network namespace that this was opened in.
pub(crate) struct KernelRuleset {
    writer: Writer,
    clients: Clients,
    config: ProxyConfig,
}

impl KernelRuleset {
    /// Makes the maps and the rules, or brings the rules up to date with this build and configuration, in one
    /// transaction and without touching the elements.
    pub(crate) async fn open(config: &ProxyConfig) -> Result<Self, Error> {
        let mut ruleset = Self { writer: Writer::open()?, clients: Clients::open()?, config: config.clone() };
        ruleset.lay_out().await?;
        Ok(ruleset)
    }

    async fn lay_out(&mut self) -> Result<(), Error> {
        for family in Family::BOTH {
            if !self.lay_out_family(family).await? {
                // Another build's maps, of another shape: nothing in them can be kept. Connections go on, as conntrack
                // has them; new ones wait for the first sync.
                tracing::warn!(?family, "the table found has maps of another shape; making it anew");
                remove_table(&self.writer.connection, family).await?;
                self.lay_out_family(family).await?;
            }
        }
        Ok(())
    }

    /// False if there are maps that cannot be used.
    async fn lay_out_family(&mut self, family: Family) -> Result<bool, Error> {
        let nf = nf_family(family);
        let reading = |source| Error::Read { what: format!("the {nf:?} tables"), source: Box::new(source) };
        let tables = self.writer.connection.list_tables_in(nf).await.map_err(reading)?;
        let exists = tables.iter().any(|table| table.name.as_str() == TABLE);
        let mut transaction = self.writer.connection.transaction();
        if !exists {
            transaction = transaction.add_table(TABLE, nf);
        }
        let sets =
            if exists { self.writer.connection.list_sets_in(TABLE, nf).await.map_err(reading)? } else { Vec::new() };
        for map in Map::all() {
            match sets.iter().find(|set| set.name == map.name()) {
                None => transaction = transaction.add_set(map.set(family)),
                Some(found) => {
                    if !map.is(family, found) {
                        return Ok(false);
                    }
                }
            }
        }
        let found = if exists { self.dynamic_chains(family).await? } else { Vec::new() };
        let mut plans = fixed_chains(family, &self.config);
        plans.extend(found.into_iter().map(|kind| dynamic_chain(family, kind)));
        for plan in &plans {
            transaction = transaction.update_chain(nf_chain(plan, family)?).flush_chain(TABLE, &plan.name, nf);
        }
        for rule in plans.into_iter().flat_map(|plan| plan.rules) {
            transaction = transaction.add_rule(rule);
        }
        self.writer.send(transaction, || format!("the maps and rules of table {nf:?} {TABLE}")).await?;
        Ok(true)
    }

    async fn dynamic_chains(&self, family: Family) -> Result<Vec<ChainKind>, Error> {
        let chains = self.writer.connection.list_chains_in(TABLE, nf_family(family)).await;
        let chains =
            chains.map_err(|source| Error::Read { what: "the chains".to_owned(), source: Box::new(source) })?;
        Ok(chains.iter().filter_map(|chain| ChainKind::parse(chain.name.as_str())).collect())
    }

    async fn read_rules(&self) -> Result<Vec<(String, Vec<u8>)>, Error> {
        let mut all = Vec::new();
        for family in Family::BOTH {
            let reading = |source| Error::Read { what: "the rules".to_owned(), source: Box::new(source) };
            let rules = self.writer.connection.list_rules(TABLE, nf_family(family)).await.map_err(reading)?;
            all.extend(rules.into_iter().map(|rule| (format!("{family:?} {}", rule.chain), rule.expression_bytes)));
        }
        Ok(all)
    }

    async fn remove_strays(&mut self, family: Family, map: Map, strays: &[SetElement]) -> Result<usize, Error> {
        if !strays.is_empty() {
            let transaction = self.writer.connection.transaction().del_set_elements(&map.set(family), strays);
            self.writer.send(transaction, || format!("removing strays from {}", map.name())).await?;
        }
        Ok(strays.len())
    }
}

impl Ruleset for KernelRuleset {
    async fn read(&mut self) -> Result<(State, usize), Error> {
        let mut entries = Vec::new();
        let mut chains = Vec::new();
        let mut mended = 0;
        self.writer.note_generation().await;
        for family in Family::BOTH {
            for map in Map::all() {
                if matches!(map, Map::Affinity | Map::Picks | Map::Remembers) {
                    continue;
                }
                let found = self.writer.elements(family, map).await?;
                let strays = take_read(found, &mut entries, |element| wire::entry(map, family, element));
                mended += self.remove_strays(family, map, &strays).await?;
            }
            let mut kinds = Vec::new();
            for map in [Map::Picks, Map::Remembers] {
                let found = self.writer.elements(family, map).await?;
                let strays = take_read(found, &mut kinds, |element| wire::classified(map, element));
                mended += self.remove_strays(family, map, &strays).await?;
            }
            // A chain that no class leads to is made anew if it is wanted.
            for kind in self.dynamic_chains(family).await?.into_iter().filter(|kind| !kinds.contains(kind)) {
                let transaction = self.writer.connection.transaction();
                let transaction = transaction.del_chain(TABLE, &kind.to_string(), nf_family(family));
                self.writer.send(transaction, || format!("removing chain {kind}, which nothing leads to")).await?;
                mended += 1;
            }
            chains.extend(kinds.into_iter().map(|kind| Chain { family, kind }));
        }
        let wanted: BTreeSet<Chain> = entries.iter().filter_map(chain_of).collect();
        let create: Vec<Chain> = wanted.into_iter().filter(|chain| !chains.contains(chain)).collect();
        mended += create.len();
        chains.extend(&create);
        self.commit(&Operations { create, ..Operations::default() }).await?;
        Ok((State::found(entries, chains), mended))
    }

    async fn commit(&mut self, operations: &Operations) -> Result<(), Error> {
        if operations.is_empty() {
            return Ok(());
        }
        let mut transaction = self.writer.connection.transaction();
        for (set, elements) in messages(&operations.delete) {
            transaction = transaction.del_set_elements(&set, &elements);
        }
        for chain in &operations.create {
            let plan = dynamic_chain(chain.family, chain.kind);
            // Flushed, in case it stayed behind from an earlier life with other rules.
            transaction = transaction.update_chain(nf_chain(&plan, chain.family)?).flush_chain(
                TABLE,
                &plan.name,
                nf_family(chain.family),
            );
            for rule in plan.rules {
                transaction = transaction.add_rule(rule);
            }
            let class = wire::class_element(chain.kind);
            transaction = transaction.add_set_elements(&classes(chain.kind).set(chain.family), &[class]);
        }
        for (set, elements) in messages(&operations.insert) {
            transaction = transaction.add_set_elements(&set, &elements);
        }
        for chain in &operations.remove {
            let class = wire::class_element(chain.kind);
            transaction = transaction.del_set_elements(&classes(chain.kind).set(chain.family), &[class]);
            transaction = transaction.del_chain(TABLE, &chain.kind.to_string(), nf_family(chain.family));
        }
        self.writer
            .send(transaction, || {
                format!("{} deletions and {} insertions", operations.delete.len(), operations.insert.len())
            })
            .await
    }

    async fn clients(&mut self, family: Family) -> Result<Option<u32>, Error> {
        self.clients.count(family).await
    }

    async fn counted(&mut self) -> Result<BTreeMap<Frontend, Counts>, Error> {
        let mut counted = BTreeMap::<_, Counts>::new();
        for family in Family::BOTH {
            for map in [Map::Connections, Map::NodePortConnections, Map::Traffic, Map::NodePortTraffic] {
                for element in self.writer.elements(family, map).await? {
                    let key = wire::entry(map, family, &element).map(|(key, _)| key);
                    let Some((packets, bytes)) = element.counter() else { continue };
                    match key {
                        Some(Key::Connections(frontend)) => counted.entry(frontend).or_default().connections = packets,
                        Some(Key::Traffic(frontend)) => {
                            let counts = counted.entry(frontend).or_default();
                            (counts.packets, counts.bytes) = (packets, bytes);
                        }
                        _ => {}
                    }
                }
            }
        }
        Ok(counted)
    }

    async fn is_touched(&mut self) -> bool {
        self.writer.is_touched().await
    }

    async fn repair(&mut self) -> Result<bool, Error> {
        // No table at all is one way to be changed.
        let before = self.read_rules().await.unwrap_or_default();
        self.lay_out().await?;
        Ok(before != self.read_rules().await?)
    }
}

/// Removes all that any [`KernelRuleset`] made in this network namespace.
pub(crate) async fn remove_everything() -> Result<(), Error> {
    let connection = writer::connect()?;
    for family in Family::BOTH {
        remove_table(&connection, family).await?;
    }
    Ok(())
}

async fn remove_table(connection: &Connection<Nftables>, family: Family) -> Result<(), Error> {
    let removed = connection.del_table_if_exists(TABLE, nf_family(family)).await;
    removed
        .map(|_| ())
        .map_err(|source| Error::Refused { what: format!("removing table {TABLE}"), source: Box::new(source) })
}

fn nf_chain(plan: &ChainPlan, family: Family) -> Result<NfChain, Error> {
    let chain = NfChain::new(TABLE, plan.name.as_str())
        .map_err(|source| Error::Refused { what: format!("chain {}", plan.name), source: Box::new(source) })?
        .family(nf_family(family));
    Ok(match &plan.base {
        Some(base) => chain.base(base.clone()),
        None => chain,
    })
}

/// Puts what `read` makes of the elements into `into`; gives those that it makes nothing of.
fn take_read<T>(
    elements: Vec<SetElement>,
    into: &mut Vec<T>,
    read: impl Fn(&SetElement) -> Option<T>,
) -> Vec<SetElement> {
    let mut strays = Vec::new();
    for element in elements {
        match read(&element) {
            Some(item) => into.push(item),
            None => strays.push(element),
        }
    }
    strays
}

/// The entries as element lists, a map's together, none too long for a message.
fn messages(entries: &[Entry]) -> Vec<(Set, Vec<SetElement>)> {
    let mut by_map = std::collections::BTreeMap::<_, Vec<SetElement>>::new();
    for entry in entries {
        by_map.entry((wire::map_of(&entry.0), entry.0.family())).or_default().push(wire::element(entry));
    }
    let mut messages = Vec::new();
    for ((map, family), elements) in by_map {
        for chunk in elements.chunks(wire::MESSAGE_ELEMENTS) {
            messages.push((map.set(family), chunk.to_vec()));
        }
    }
    messages
}
