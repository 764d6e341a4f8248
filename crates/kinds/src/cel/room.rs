//! What an evaluation may spend, and what it has spent.
//!
//! Two things are counted: the cost, as upstream reckons it and tells of it; and the work, which is what this program
//! really does, where upstream reckons it as nothing. Running out of either ends the evaluation.
//! Source: `interpreter/runtimecost.go` of cel-go, for the cost.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use regex::Regex;

use super::value::Value;
use crate::custom::{LARGEST_PATTERN, NoPattern, Pattern, compile_pattern};

/// What one evaluation may cost, as upstream reckons costs: about 50 ns each.
pub(crate) const MOST_PER_CALL: u64 = 1_000_000;
/// Parts of a rule evaluated, and items looked at, copied or compared, in one evaluation.
pub(crate) const MOST_WORK: u64 = 4_000_000;
/// How much of a text is looked through in the time that one item takes.
pub(super) const BYTES_A_STEP: u64 = 128;
/// What compiling a regular expression is worth, for each of its characters.
const WORK_PER_PATTERN_CHARACTER: u64 = 200;
/// What one is worth that takes more bytes than [`SMALL_PATTERN`], however short it is written.
const WORK_PER_LARGE_PATTERN: u64 = 200_000;
const SMALL_PATTERN: usize = 128 << 10;
/// Regular expressions of an evaluation's own making that are kept for its next call.
const MOST_MADE: usize = 16;

/// Why there is no value.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Failure {
    NoOverload,
    TooExpensive,
    Other(String),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoOverload => f.write_str("no such overload"),
            Self::TooExpensive => f.write_str("operation cancelled: actual cost limit exceeded"),
            Self::Other(words) => f.write_str(words),
        }
    }
}

/// The regular expressions that stand in a rule itself.
pub(super) type Patterns = HashMap<String, Pattern>;

/// How much was spent, or may be.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Spent {
    pub(crate) cost: u64,
    pub(crate) work: u64,
}

/// What is left to spend.
pub(super) struct Room {
    pub(super) spent: Spent,
    most: Spent,
    /// Compiled when first asked for, and kept with the rule.
    fixed: Arc<Patterns>,
    /// Those that the rule made, some of them.
    made: HashMap<String, Regex>,
}

impl Room {
    pub(super) fn new(most: Spent, fixed: Arc<Patterns>) -> Self {
        Self { spent: Spent::default(), most, fixed, made: HashMap::new() }
    }

    pub(super) fn charge(&mut self, cost: u64) -> Result<(), Failure> {
        self.spent.cost = self.spent.cost.saturating_add(cost);
        if self.spent.cost > self.most.cost { Err(Failure::TooExpensive) } else { Ok(()) }
    }

    /// Asks before that much is done.
    pub(super) fn work(&mut self, amount: u64) -> Result<(), Failure> {
        self.spent.work = self.spent.work.saturating_add(amount);
        if self.spent.work > self.most.work { Err(Failure::TooExpensive) } else { Ok(()) }
    }

    /// Before a text is looked through.
    pub(super) fn work_through(&mut self, bytes: usize) -> Result<(), Failure> {
        self.work(bytes as u64 / BYTES_A_STEP)
    }

    /// After a value was taken out of an object or a variable: bytes are decoded, or copied, each time.
    pub(super) fn work_on(&mut self, value: &Value<'_>) -> Result<(), Failure> {
        match value {
            Value::Bytes(bytes) => self.work_through(bytes.len()),
            // What is asked of these goes through their text.
            Value::Url(url) => self.work_through(url.len()),
            Value::Semver(version) => self.work_through(version.len()),
            Value::Optional(Some(inner)) => self.work_on(inner),
            _ => Ok(()),
        }
    }

    pub(super) fn pattern(&mut self, text: &str) -> Result<&Regex, Failure> {
        if !self.fixed.contains_key(text) && !self.made.contains_key(text) {
            self.work(WORK_PER_PATTERN_CHARACTER.saturating_mul(text.len() as u64))?;
            let mut compiled = compile_pattern(text, SMALL_PATTERN);
            if matches!(compiled, Err(NoPattern::TooLarge)) {
                self.work(WORK_PER_LARGE_PATTERN)?;
                compiled = compile_pattern(text, LARGEST_PATTERN);
            }
            let compiled = compiled.map_err(|why| wrong_pattern(text, &why))?;
            if self.made.len() >= MOST_MADE {
                self.made.clear();
            }
            self.made.insert(text.to_owned(), compiled);
        }
        let fixed = self.fixed.get(text).and_then(Pattern::compiled);
        fixed.or_else(|| self.made.get(text)).ok_or_else(|| wrong_pattern(text, &NoPattern::TooLarge))
    }
}

pub(super) fn wrong_pattern(text: &str, why: &NoPattern) -> Failure {
    Failure::Other(format!("error parsing regexp: {why}: `{text}`"))
}
