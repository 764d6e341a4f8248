//! A kernel -> its table, chain by chain and element by element.

use std::collections::{BTreeMap, HashMap};

use nlink::netlink::nftables::{ChainType, RuleExpr, SetElement, SetElementData, SetFlags, SetKeyType};
use nlink::netlink::{Connection, Nftables};
use portolan_model::forwarding::Family;

use super::text;
use crate::Error;
use crate::nft::{TABLE, nf_family};

/// The table in one family. Empty where there is none.
#[derive(Debug, Default)]
pub struct Table {
    pub(super) chains: BTreeMap<String, Chain>,
    pub(super) sets: HashMap<String, Set>,
}

#[derive(Debug, Default)]
pub(super) struct Chain {
    pub(super) base: Option<Base>,
    pub(super) rules: Vec<Rule>,
}

/// Where a chain is entered by itself.
#[derive(Debug)]
pub(super) struct Base {
    pub(super) hook: u32,
    pub(super) priority: i32,
    pub(super) nat: bool,
    pub(super) drops: bool,
}

#[derive(Debug)]
pub(super) struct Rule {
    pub(super) comment: String,
    /// As `nft` prints it, without the comment; empty where that is not known.
    pub(super) text: String,
    pub(super) expressions: Vec<RuleExpr>,
}

#[derive(Debug)]
pub(super) struct Set {
    pub(super) key: SetKeyType,
    pub(super) key_length: usize,
    pub(super) value: Option<SetKeyType>,
    single: HashMap<Vec<u8>, Option<SetElementData>>,
    ranges: Vec<Range>,
    /// A range of a concatenation is one of each field; otherwise it is one of the whole key.
    by_field: bool,
}

#[derive(Debug)]
struct Range {
    from: Vec<u8>,
    to: Vec<u8>,
    data: Option<SetElementData>,
}

impl Table {
    /// As it is in the calling thread's network namespace. Changes nothing, and needs no leave of whoever keeps it.
    ///
    /// # Errors
    /// What the kernel refused to tell.
    pub async fn read(family: Family) -> Result<Self, Error> {
        let open = |source| Error::Socket { what: "nftables", source: Box::new(source) };
        let reading = |source| Error::Read { what: format!("table {TABLE}"), source: Box::new(source) };
        let kernel = Connection::<Nftables>::new().map_err(open)?;
        let nf = nf_family(family);
        let tables = kernel.list_tables_in(nf).await.map_err(reading)?;
        let mut table = Self::default();
        if !tables.iter().any(|found| found.name.as_str() == TABLE) {
            return Ok(table);
        }
        for chain in kernel.list_chains_in(TABLE, nf).await.map_err(reading)? {
            let base = chain.hook.map(|hook| Base {
                hook,
                priority: chain.priority.unwrap_or_default(),
                nat: matches!(chain.chain_type, Some(ChainType::Nat)),
                drops: chain.policy == Some(0),
            });
            table.chains.insert(chain.name, Chain { base, rules: Vec::new() });
        }
        for rule in kernel.list_rules(TABLE, nf).await.map_err(reading)? {
            let chain = table.chains.entry(rule.chain.clone()).or_default();
            let comment = rule.comment_text.clone().unwrap_or_default();
            let text = rule.nft_syntax_stateless().unwrap_or_default();
            let text = text.strip_suffix(&format!(" comment \"{comment}\"")).unwrap_or(&text).to_owned();
            chain.rules.push(Rule { comment, text, expressions: rule.expressions() });
        }
        for info in kernel.list_sets_in(TABLE, nf).await.map_err(reading)? {
            let elements = kernel.list_set_elements(TABLE, &info.name, nf).await.map_err(reading)?;
            let value = info.data_type.map(|id| SetKeyType::from_kernel(id, info.data_len.unwrap_or_default()));
            let set = Set {
                key: SetKeyType::from_kernel(info.key_type, info.key_len),
                key_length: usize::try_from(info.key_len).unwrap_or(usize::MAX),
                value,
                single: HashMap::new(),
                ranges: Vec::new(),
                by_field: info.flags.contains(SetFlags::CONCAT),
            };
            table.sets.insert(info.name, set.with(elements));
        }
        Ok(table)
    }

    /// Whether there is nothing at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.chains.is_empty()
    }
}

impl Set {
    fn with(mut self, elements: Vec<SetElement>) -> Self {
        for element in elements {
            let data = element.data().cloned();
            match element.key_end() {
                Some(end) => self.ranges.push(Range { from: element.key().to_vec(), to: end.to_vec(), data }),
                None => drop(self.single.insert(element.key().to_vec(), data)),
            }
        }
        self
    }

    /// The element for the key, as `nft` prints its key, with what it maps to.
    pub(super) fn find(&self, key: &[u8]) -> Option<(String, Option<&SetElementData>)> {
        if let Some(data) = self.single.get(key) {
            return Some((text::value(&self.key, key), data.as_ref()));
        }
        let found = self.ranges.iter().find(|range| self.holds(range, key))?;
        Some((text::range(&self.key, &found.from, &found.to), found.data.as_ref()))
    }

    fn holds(&self, range: &Range, key: &[u8]) -> bool {
        if !self.by_field {
            return range.from.as_slice() <= key && key <= range.to.as_slice();
        }
        let fields = |bytes| text::fields(&self.key, bytes);
        let (from, key, to) = (fields(&range.from), fields(key), fields(&range.to));
        from.iter().zip(&key).zip(&to).all(|((from, key), to)| from.1 <= key.1 && key.1 <= to.1)
    }

    /// What an element maps to, as `nft` prints it.
    pub(super) fn print(&self, data: &SetElementData) -> String {
        match data {
            SetElementData::Value(bytes) => match &self.value {
                Some(kind) => text::value(kind, bytes),
                None => String::new(),
            },
            SetElementData::Verdict(verdict) => text::verdict(verdict),
            SetElementData::Object(name) => name.clone(),
            _ => String::new(),
        }
    }
}
